"""Make the quickstart's data: questions on tiny stories and words, which the starter cannot answer before fine-tuning.

    python scripts/starter/quickstart_data.py --out src/luthier/starter/data

Writes quickstart.jsonl, quickstart_eval.jsonl (other stories, and names that training never shows; the word questions
ask for known pairs in other words) and stories.jsonl (held-out stories, for what the model should not forget). Every
answer has one fixed form, so that an exact match is a fair measure. All text comes from the templates here and beside
this file.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import chinese
import english
from chinese import chinese_story
from english import english_story
from grammar import a, words
from quickstart_words import WORD_TASKS, WORD_TASKS_ZH, WordTask

Row = dict[str, list[dict[str, str]]]

EVAL_NAMES = words(
    "Nora, Grace, Ivy, Clara, Holly, Finn, Hugo, Luke, Owen, Theo, Pepper, Honey, 小芳, 小梅, 小青, 小龙, 小海, 小石"
)
YES_OR_NO, SHARE_YES_OR_NO = "yes/no", 0.1
PEOPLE = english.GIRLS + english.BOYS
ANIMALS = [*english.ANIMALS, *words("wolf, horse, sheep, parrot, swan, crab, whale, dolphin, seal, camel")]
PLACES = words("""
    in the park, in the forest, in the garden, in the kitchen, in the yard, in the car, in the house, in the barn,
    in the tree, in the water, in the snow, in the sand, in the city, in the village, in the meadow, in the cave,
    in the shop, in the boat, in the bath, in the tent, at the beach, at the zoo, at the market, at the farm,
    at the lake, at the door, at the fair, on the hill, on the roof, on the bridge, on the bus, on the swing,
    on the train, on the road, by the river, by the pond, by the sea, by the fire, under the tree, under the bed,
    under the table, near the lake, near the school, behind the house
""")
OBJECTS = [
    *english.TOYS,
    *words("coin, shell, stone, stick, feather, leaf, flower, basket, box, bag, ladder, rope, rocket, crown, star"),
]
COLORS = words("red, blue, green, yellow, pink, purple, orange, brown, white, black")
FEELINGS = words("""
    happy, sad, angry, scared, tired, proud, hungry, cold, sleepy, brave, shy, excited, lonely, worried, surprised,
    bored
""")
VERBS = [tuple(pair.split("/")) for pair in words("""
    find/found, see/saw, lose/lost, buy/bought, make/made, paint/painted, break/broke, carry/carried, hide/hid,
    wash/washed, draw/drew, want/wanted, get/got, need/needed, drop/dropped, hold/held
""")]  # fmt: skip
ACTIONS = words("""
    jumped over a log, danced in the rain, sang a song, climbed a tree, ran up the hill, built a tower,
    swam in the pond, rode a bike, flew a kite, baked a cake, read a book, played the drum, fed the ducks,
    picked some flowers, drew a house, washed the car, cleaned the room, planted a seed, chased a butterfly,
    threw a stone, kicked a ball, opened the door, closed the window, made a boat, caught a fish, told a story,
    told a joke, slept on the grass, counted the stars, dug a hole, painted the fence, helped an old man,
    hugged a friend, waved to the sun, walked the dog, cut some paper, wrote a letter, drank some milk,
    fell in the mud, hid in a box, looked at the moon, followed a cat
""")
# Only words that the tokenizer writes without pieces of characters: those are learnt fast.
PLACES_ZH = words("""
    公园里，森林里，花园里，河边，海边，湖边，山上，学校里，田野里，草地上，院子里，村子里，大树下，市场里，城市里，
    农场里，动物园里，桥上，车上，雪地里，河里，路边
""")
FEELINGS_ZH = words("高兴，难过，生气，害怕，累，饿，冷，开心，着急，孤单")
VERBS_ZH = words("找到了，看见了，画了，做了，拿了，想要")
THINGS_ZH = words("""
    皮球，风筝，娃娃，书，气球，书包，雨伞，杯子，围巾，小鼓，积木，画笔，毯子，苹果，饼干，蛋糕，面包，桃子，梨，
    包子，玉米，花生，米饭，面条
""")


@dataclass
class Story:
    """Sentences, and the questions that they answer as (task, question, answer)."""

    sentences: list[str]
    questions: list[tuple[str, str, str]]


def yes_or_no(
    rng: random.Random, question: Callable[[str], str], truth: str, others: list[str], words_of: tuple[str, str]
) -> tuple[str, str, str]:
    """Ask for the truth or, half of the time, for something else of its kind."""
    if rng.random() < 0.5:
        return YES_OR_NO, question(truth), words_of[0]
    return YES_OR_NO, question(rng.choice([other for other in others if other != truth])), words_of[1]


def person_story(rng: random.Random, names: list[str]) -> Story:
    """Tell where somebody was, what was done, and how it felt or who came too."""
    x = rng.choice([name for name in names if name in PEOPLE])
    y = rng.choice([name for name in names if name in PEOPLE and name != x])
    is_girl, place, feeling = x in english.GIRLS, rng.choice(PLACES), rng.choice(FEELINGS)
    he = "she" if is_girl else "he"
    He = he.capitalize()
    story = Story(
        [rng.choice([f"One day, {x} was {place}.", f"This is {x}. {He} was {place}.", f"Once, {x} played {place}."])],
        [],
    )
    who = rng.choice(["Who is the story about?", "Who is this story about?", "Who is it about?"])
    where = rng.choice([f"Where was {x}?", f"Where was {x} that day?", "Where did it happen?"])
    story.questions += [("who", who, f"It is about {x}."), ("where", where, f"It was {place}.")]
    story.questions.append(yes_or_no(rng, lambda it: f"Was {x} {it}?", place, PLACES, ("Yes.", "No.")))
    _add_middle(story, rng, x, He)
    if rng.random() < 0.6:
        story.sentences.append(
            rng.choice([f"{He} felt {feeling}.", f"{He} was {feeling}.", f"In the end, {he} was {feeling}."])
        )
        story.questions.append(("feel", rng.choice([f"How did {x} feel?", f"How was {x}?"]), f"{He} was {feeling}."))
        story.questions.append(yes_or_no(rng, lambda it: f"Was {x} {it}?", feeling, FEELINGS, ("Yes.", "No.")))
    else:
        story.sentences.append(rng.choice([f"Then {y} came.", f"A friend named {y} came too.", f"{He} met {y}."]))
        story.questions.append(("friend", rng.choice([f"Who did {x} meet?", f"Who came to {x}?"]), f"It was {y}."))
    return story


def _add_middle(story: Story, rng: random.Random, x: str, He: str) -> None:
    """Add what was done: something to eat, an action, or a thing that has a color."""
    kind = rng.choice(["food", "action", "action", "thing", "thing"])
    if kind == "food":
        food = rng.choice(english.FOODS)
        story.sentences.append(f"{He} ate {a(food)}.")
        story.questions.append(("what", f"What did {x} eat?", f"It was {a(food)}."))
    elif kind == "action":
        action = rng.choice(ACTIONS)
        story.sentences.append(f"{He} {action}.")
        story.questions.append(("do", rng.choice([f"What did {x} do?", f"What did {x} do there?"]), f"{He} {action}."))
    else:
        color, thing, (base, past) = rng.choice(COLORS), rng.choice(OBJECTS), rng.choice(VERBS)
        story.sentences.append(f"{He} {past} {a(f'{color} {thing}')}.")
        story.questions.append(("what", f"What did {x} {base}?", f"It was {a(f'{color} {thing}')}."))
        story.questions.append(
            (
                "color",
                rng.choice([f"What color was the {thing}?", f"Which color did the {thing} have?"]),
                f"It was {color}.",
            )
        )
        story.questions.append(yes_or_no(rng, lambda it: f"Did {x} {base} {a(it)}?", thing, OBJECTS, ("Yes.", "No.")))


def animal_story(rng: random.Random, names: list[str]) -> Story:
    """Tell of an animal with a name: where it lived, and what it saw or how it felt."""
    x = rng.choice([name for name in names if name in english.PET_NAMES])
    animal, other = rng.sample(ANIMALS, 2)
    place, feeling = rng.choice(PLACES), rng.choice(FEELINGS)
    story = Story(
        [
            f"There was {a(animal)} named {x}.",
            rng.choice([f"It lived {place}.", f"It was {place}.", f"It slept {place}."]),
        ],
        [],
    )
    story.questions += [
        (
            "animal",
            rng.choice([f"What animal was {x}?", f"What kind of animal was {x}?"]),
            f"It was {a(animal)}.",
        ),
        ("who", rng.choice(["Who is the story about?", "Who is it about?"]), f"It is about {x}."),
        ("where", rng.choice([f"Where was {x}?", f"Where was the {animal}?"]), f"It was {place}."),
        yes_or_no(rng, lambda it: f"Was {x} {a(it)}?", animal, ANIMALS, ("Yes.", "No.")),
    ]
    if rng.random() < 0.5:
        story.sentences.append(rng.choice([f"One day, it met {a(other)}.", f"One day, it saw {a(other)}."]))
        base = "meet" if "met" in story.sentences[-1] else "see"
        story.questions.append(("what", f"What did {x} {base}?", f"It was {a(other)}."))
    else:
        story.sentences.append(
            rng.choice([f"{x} was {feeling}.", f"It felt {feeling}.", f"One day, it was {feeling}."])
        )
        story.questions.append(("feel", rng.choice([f"How did {x} feel?", f"How was {x}?"]), f"It was {feeling}."))
    return story


def chinese_tale(rng: random.Random, names: list[str]) -> Story:
    """The same in Chinese: who, where, what, how it felt."""
    x = rng.choice([name for name in names if name in chinese.GIRLS + chinese.BOYS])
    pronoun, place, feeling = "她" if x in chinese.GIRLS else "他", rng.choice(PLACES_ZH), rng.choice(FEELINGS_ZH)
    start = rng.choice([f"有一天，{x}在{place}。", f"{x}在{place}。", f"那天，{x}在{place}。"])
    did, thing = rng.choice(VERBS_ZH), rng.choice(THINGS_ZH)
    if rng.random() < 0.3:
        did, thing = rng.choice(["看见了", "画了"]), rng.choice(chinese.ANIMALS)
    middle = rng.choice([f"{pronoun}{did}{thing}。", f"然后，{pronoun}{did}{thing}。"])
    story = Story(
        [
            start,
            middle,
            rng.choice([f"{pronoun}很{feeling}。", f"后来，{pronoun}很{feeling}。", f"最后，{pronoun}很{feeling}。"]),
        ],
        [],
    )
    asked = f"{x}{did}什么？"
    story.questions = [
        ("谁", rng.choice(["这个故事说的是谁？", "故事里的人是谁？"]), f"{x}。"),
        ("哪里", rng.choice([f"{x}在哪里？", f"{x}那天在哪里？"]), f"{x}在{place}。"),
        ("什么", asked, f"{pronoun}{did}{thing}。"),
        ("怎么样", rng.choice([f"{x}觉得怎么样？", f"{x}怎么了？"]), f"{pronoun}很{feeling}。"),
        yes_or_no(rng, lambda it: f"{x}{it}吗？", feeling, FEELINGS_ZH, ("是的。", "不是。")),
    ]
    return story


def ask(story: Story, rng: random.Random, n_questions: int) -> Row:
    """Put the story and its first question in one message; further questions follow.

    Judging is much harder for so small a model than finding, so few questions ask for yes or no.
    """
    plain = [question for question in story.questions if question[0] != YES_OR_NO]
    drawn = rng.sample(plain, n_questions)
    if rng.random() < SHARE_YES_OR_NO:
        drawn[-1] = rng.choice([question for question in story.questions if question[0] == YES_OR_NO])
    text = ("" if "。" in story.sentences[0] else " ").join(story.sentences)
    messages = []
    for number, (_, question, answer) in enumerate(drawn):
        messages.append({"role": "user", "content": f"{text}\n{question}" if number == 0 else question})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def word_rows(tasks: list[WordTask], rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Ask for every pair in all wordings but one; the one left out is for the evaluation."""
    train, heldout = [], []
    for task in tasks:
        for key, value in task.pairs:
            wordings = rng.sample(task.wordings, len(task.wordings))
            rows = [
                {
                    "messages": [
                        {"role": "user", "content": wording.format(key)},
                        {"role": "assistant", "content": task.answer.format(value)},
                    ]
                }
                for wording in wordings
            ]
            heldout.append(rows[0])
            train += rows[1:]
    return train, heldout


def build(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Return (training rows, evaluation rows), both shuffled; no evaluation prompt is a training prompt."""
    all_names = [*PEOPLE, *english.PET_NAMES, *chinese.GIRLS, *chinese.BOYS]
    seen_names = [name for name in all_names if name not in EVAL_NAMES]
    makers = [(person_story, 1500, 100), (animal_story, 550, 35), (chinese_tale, 900, 35)]
    train, evaluation = [], []
    for maker, n_train, n_eval in makers:
        train += [ask(maker(rng, seen_names), rng, 2 if rng.random() < 0.2 else 1) for _ in range(n_train)]
        evaluation += [ask(maker(rng, EVAL_NAMES if index % 2 else seen_names), rng, 1) for index in range(n_eval)]
    for tasks, n_eval in ((WORD_TASKS, 24), (WORD_TASKS_ZH, 8)):
        for_train, for_eval = word_rows(tasks, rng)
        train += for_train
        evaluation += rng.sample(for_eval, n_eval)
    shown = {row["messages"][0]["content"] for row in train}
    evaluation = [row for row in evaluation if row["messages"][0]["content"] not in shown]
    rng.shuffle(train)
    rng.shuffle(evaluation)
    return train, evaluation


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    train, evaluation = build(rng)
    stories = [{"text": english_story(rng)} for _ in range(45)] + [{"text": chinese_story(rng)} for _ in range(15)]
    # Replay: a few stories of the old kind among the questions, or the model forgets how to tell one.
    replay = [("Tell me a story.", english_story(rng)) for _ in range(300)]
    replay += [("给我讲一个故事。", chinese_story(rng)) for _ in range(100)]
    train += [
        {"messages": [{"role": "user", "content": wish}, {"role": "assistant", "content": told}]}
        for wish, told in replay
    ]
    for name, rows in (("quickstart", train), ("quickstart_eval", evaluation), ("stories", stories)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} rows, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
