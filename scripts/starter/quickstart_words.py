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
    hot cold, big small, up down, day night, fast slow, happy sad, open closed, full empty, old new, wet dry,
    hard soft, high low, long short, in out, light dark, clean dirty, good bad, yes no, left right, loud quiet,
    rich poor, strong weak, first last, early late, near far, black white, inside outside, front back, top bottom,
    win lose
""")
COLORS = pairs("""
    grass green, the sky blue, the sun yellow, snow white, milk white, a tomato red, a carrot orange, a banana yellow,
    a frog green, a strawberry red, coal black, a leaf green, a pumpkin orange, a lemon yellow, chocolate brown,
    a pig pink, a cherry red, a cloud white, mud brown, a fire truck red
""")
SOUNDS = pairs("""
    cow moo, dog woof, cat meow, duck quack, sheep baa, pig oink, lion roar, bee buzz, mouse squeak, owl hoot,
    frog ribbit, horse neigh, snake hiss, bird tweet, hen cluck, rooster cock-a-doodle-doo
""")
OPPOSITES_ZH = pairs("""
    大 小，高 矮，长 短，多 少，快 慢，冷 热，黑 白，上 下，左 右，前 后，里 外，早 晚，新 旧，远 近，开 关，好 坏，
    胖 瘦，哭 笑
""")
COLORS_ZH = pairs(
    "草 绿色，天空 蓝色，太阳 红色，雪 白色，香蕉 黄色，西瓜皮 绿色，牛奶 白色，草莓 红色，胡萝卜 橙色，葡萄 紫色"
)


def capital(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Write the answers as sentences of one word."""
    return [(key, value[0].upper() + value[1:]) for key, value in items]


WORD_TASKS = [
    WordTask(
        capital(OPPOSITES),
        [
            "What is the opposite of {}?",
            "Opposite of {}?",
            "Tell me the opposite of {}.",
            "Which word means the opposite of {}?",
        ],
        "{}.",
    ),
    WordTask(
        capital(COLORS),
        ["What color is {}?", "Which color does {} have?", "Tell me the color of {}.", "What is the color of {}?"],
        "{}.",
    ),
    WordTask(
        capital(SOUNDS),
        ["What does a {} say?", "What sound does a {} make?", "How does a {} sound?", "Which sound comes from a {}?"],
        "{}!",
    ),
]
WORD_TASKS_ZH = [
    WordTask(OPPOSITES_ZH, ["“{}”的反义词是什么？", "和“{}”相反的字是什么？", "“{}”的反面是什么？"], "{}。"),
    WordTask(COLORS_ZH, ["{}是什么颜色？", "{}的颜色是什么？", "什么颜色是{}的颜色？"], "{}。"),
]
