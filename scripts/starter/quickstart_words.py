"""Closed lists that the quickstart teaches by heart: opposites, colors, sounds of animals, what is done with things."""

from dataclasses import dataclass

from grammar import words


@dataclass(frozen=True)
class WordTask:
    """Pairs (asked, answer), the wordings of the question and the one form of the answer."""

    pairs: list[tuple[str, str]]
    wordings: list[str]
    answer: str = "{}"


def pairs(text: str) -> list[tuple[str, str]]:
    """Read "hot cold, big small"; the last word of each entry is the answer."""
    split = [entry.rsplit(" ", 1) for entry in words(text)]
    return [(key, value) for key, value in split]


OPPOSITES = pairs("""
    hot cold, big small, up down, day night, fast slow, happy sad, open closed, full empty, old new, wet dry, hard soft,
    high low, long short, light dark, clean dirty, good bad, left right, loud quiet, strong weak, first last, near far,
    black white, inside outside, win lose
""")
COLORS = pairs("""
    grass green, the sky blue, the sun yellow, snow white, a tomato red, a carrot orange, a banana yellow, a frog green,
    a strawberry red, a pumpkin orange, a lemon yellow, chocolate brown, a pig pink, a cloud white
""")
SOUNDS = pairs("""
    cow moo, dog woof, cat meow, duck quack, sheep baa, pig oink, lion roar, bee buzz, mouse squeak, owl hoot,
    snake hiss, bird tweet
""")
OPPOSITES_ZH = pairs("大 小，快 慢，黑 白，上 下，前 后，早 晚，开 关，哭 笑")
COLORS_ZH = pairs("草 绿色，天空 蓝色，太阳 红色，雪 白色，牛奶 白色")


WORD_TASKS = [
    WordTask(
        OPPOSITES,
        [
            "What is the opposite of {}?",
            "Opposite of {}?",
            "Tell me the opposite of {}.",
            "Which word means the opposite of {}?",
            "{} is the opposite of what?",
            "Say the opposite of {}.",
            "Do you know the opposite of {}?",
        ],
        "It is {}.",
    ),
    WordTask(
        COLORS,
        [
            "What color is {}?",
            "Which color does {} have?",
            "Tell me the color of {}.",
            "What is the color of {}?",
            "Color of {}?",
            "Do you know what color {} is?",
            "Say what color {} is.",
        ],
        "It is {}.",
    ),
    WordTask(
        SOUNDS,
        [
            "What does a {} say?",
            "What sound does a {} make?",
            "How does a {} sound?",
            "Which sound comes from a {}?",
            "Tell me the sound of a {}.",
            "Sound of a {}?",
            "Do you know what a {} says?",
        ],
        "It says {}.",
    ),
]
WORD_TASKS_ZH = [
    WordTask(
        OPPOSITES_ZH,
        [
            "“{}”的反义词是什么？",
            "和“{}”相反的字是什么？",
            "“{}”的反面是什么？",
            "请说出“{}”的反义词。",
            "你知道“{}”的反义词吗？",
        ],
        "{}。",
    ),
    WordTask(
        COLORS_ZH,
        ["{}是什么颜色？", "{}的颜色是什么？", "什么颜色是{}的颜色？", "你知道{}是什么颜色吗？", "请说出{}的颜色。"],
        "{}。",
    ),
]
