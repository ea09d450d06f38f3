"""Plain conversations for the starter's corpus, so that the marks of the chat template are trained.

They hold greetings, stories on request, continuations and repetitions. What the quickstart teaches (questions on a
story, word questions) is left out on purpose: a fine-tuning run should show a difference.
"""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import chinese
import english
from grammar import a, words

Message = dict[str, str]

NOUNS = [
    *english.ANIMALS,
    *english.TOYS,
    *words("car, tree, flower, bug, fish, king, princess, boat, star, snow, rain, birthday, bike, cake, garden"),
]
NOUNS_ZH = [*chinese.ANIMALS, *chinese.TOYS]
SYSTEM = [
    "You are a friendly storyteller.",
    "You tell short stories for children.",
    "You are a kind helper.",
    "Use simple words.",
]
SYSTEM_ZH = ["你是一个会讲故事的朋友。", "你给孩子们讲故事。", "请用简单的话。"]

SMALL_TALK = [
    tuple(line.split(" => "))
    for line in """Hello! => Hello! It is nice to see you.
Hi! => Hi! What would you like to do?
Hi there! => Hello! How are you today?
Good morning! => Good morning! I hope you slept well.
Good evening! => Good evening! Would you like to hear a story?
How are you? => I am fine, thank you. How are you?
I am happy today. => That is good to hear! Would you like a happy story?
I am sad. => I am sorry to hear that. A story may help you feel better.
I am tired. => Then you should rest. Sleep well!
I am bored. => Let's read a story together.
Can you help me? => Yes, I will try. What do you need?
What can you do? => I can tell you short stories.
Who are you? => I am a very small language model. I like to tell stories.
Do you like stories? => Yes, I like stories very much.
Thank you! => You are welcome!
Thanks a lot! => You are welcome. Come back soon!
That was a nice story. => Thank you! I am glad that you liked it.
Good night! => Good night! Sweet dreams.
Bye! => Goodbye! See you soon.
Goodbye! => Goodbye! Have a nice day.
See you tomorrow! => See you tomorrow!""".splitlines()
]
SMALL_TALK_ZH = [
    tuple(line.split(" => "))
    for line in """你好！ => 你好！很高兴见到你。
你好吗？ => 我很好，谢谢！你好吗？
早上好！ => 早上好！今天天气真好。
晚上好！ => 晚上好！你想听故事吗？
我今天很高兴。 => 太好了！我也为你高兴。
我有点儿难过。 => 别难过，我给你讲一个故事吧。
我累了。 => 那就早点儿休息吧。
你是谁？ => 我是一个很小的语言模型，我喜欢讲故事。
你会做什么？ => 我会讲短短的故事。
你喜欢故事吗？ => 我很喜欢故事。
你能帮我吗？ => 可以，你想让我做什么？
谢谢！ => 不用谢！
谢谢你！ => 不客气！
这个故事真好听。 => 谢谢你，我很高兴你喜欢。
晚安！ => 晚安，做个好梦！
再见！ => 再见！下次再来玩。
明天见！ => 明天见！""".splitlines()
]

ASK = """Tell me a story about {a}. | Write a short story about {a}. | Please tell a story about {a}.
    | Can you tell me a story about {a}? | I want to hear a story about {a}. | A story about {a}, please.
    | Make up a story about {a}. | Do you know a story about {a}?"""
ASK_ANY = """Tell me a story. | Please tell me a story. | Write a short story. | Can you tell me a story?
    | I want to hear a story."""
ASK_CONTINUE = """Continue: {start} | Continue the story: {start} | What happens next? {start}
    | Finish this story: {start} | Go on: {start}"""
ASK_REPEAT = "Repeat: {it} | Say this again: {it} | Please say: {it} | Copy this: {it}"
ASK_ZH = """给我讲一个{a}的故事。 | 讲一个关于{a}的故事吧。 | 我想听{a}的故事。 | 请写一个关于{a}的小故事。
    | 你会讲{a}的故事吗？"""
ASK_ANY_ZH = "给我讲一个故事。 | 讲个故事吧。 | 我想听故事。 | 请写一个小故事。"
ASK_CONTINUE_ZH = "接着写：{start} | 继续：{start} | 后来呢？{start} | 把故事讲完：{start}"
ASK_REPEAT_ZH = "重复：{it} | 跟我说：{it} | 请再说一次：{it}"


def option(alternatives: str, rng: random.Random) -> str:
    """Draw one of the alternatives parted by a bar."""
    return rng.choice([choice.strip() for choice in alternatives.split("|")])


def nouns_of(story: str, known: set[str]) -> list[str]:
    """Return the known nouns that an English story names at least twice: it is about these."""
    counts = Counter(re.findall(r"[a-z]+", story.lower()))
    return [noun for noun in counts if noun in known and counts[noun] >= 2]


@dataclass
class Library:
    """Stories by language, ready to be asked for."""

    english: list[str]
    chinese: list[str]
    by_noun: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        """Keep the English stories that are short enough for one reply, and index them by their nouns."""
        known = set(NOUNS)
        self.english = [story for story in self.english if len(story) < 1200]
        for story in self.english:
            for noun in nouns_of(story, known):
                self.by_noun[noun].append(story)
        self.by_noun = {noun: stories for noun, stories in self.by_noun.items() if len(stories) >= 3}

    def english_turn(self, rng: random.Random) -> tuple[str, str]:
        """Return (request, story) in English."""
        draw = rng.random()
        if draw < 0.5:
            noun = rng.choice(list(self.by_noun))
            return option(ASK, rng).format(a=a(noun)), rng.choice(self.by_noun[noun])
        story = rng.choice(self.english)
        parts = re.split(r'(?<=[.!?])\s|(?<=[.!?]")\s', story)
        if draw < 0.75 and len(parts) > 4:
            n_given = rng.randint(1, 2)
            return option(ASK_CONTINUE, rng).format(start=" ".join(parts[:n_given])), story[
                len(" ".join(parts[:n_given])) :
            ].strip()
        if draw < 0.9:
            sentence = rng.choice(
                [part for part in parts if 10 < len(part) < 120 and part.count('"') % 2 == 0] or parts[:1]
            )
            return option(ASK_REPEAT, rng).format(it=sentence), sentence
        return option(ASK_ANY, rng), rng.choice(self.english)

    def chinese_turn(self, rng: random.Random) -> tuple[str, str]:
        """Return (request, story) in Chinese."""
        draw, story = rng.random(), rng.choice(self.chinese)
        nouns = [noun for noun in NOUNS_ZH if story.count(noun) >= 2]
        parts = re.findall(r"[^。！？]+[。！？]”?", story)
        if draw < 0.5 and nouns:
            return option(ASK_ZH, rng).format(a=rng.choice(nouns)), story
        if draw < 0.75:
            start = "".join(parts[: rng.randint(1, 2)]).strip()
            return option(ASK_CONTINUE_ZH, rng).format(start=start), story[len(start) :].strip()
        if draw < 0.9:
            return option(ASK_REPEAT_ZH, rng).format(it=parts[-1].strip()), parts[-1].strip()
        return option(ASK_ANY_ZH, rng), story


def conversation(library: Library, rng: random.Random, is_chinese: bool) -> list[Message]:
    """Return one conversation: sometimes a system message, sometimes small talk around the request."""
    small_talk = SMALL_TALK_ZH if is_chinese else SMALL_TALK
    turns = [library.chinese_turn(rng) if is_chinese else library.english_turn(rng)]
    if rng.random() < 0.2:
        turns.insert(0, rng.choice(small_talk[:12]))
    if rng.random() < 0.2:
        turns.append(rng.choice(small_talk[12:]))
    if rng.random() < 0.15:
        turns = [rng.choice(small_talk) for _ in range(rng.randint(1, 2))]
    messages = (
        [{"role": "system", "content": rng.choice(SYSTEM_ZH if is_chinese else SYSTEM)}] if rng.random() < 0.15 else []
    )
    for request, reply in turns:
        messages += [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
    return messages
