"""Defects of many forms, written into rows of any format: what the test of planted defects plants.

Each is (kinds by which it may be named, question, answer), or a function of the clean rows; `write` makes a row of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Row = dict[str, object]
Pair = tuple[str, str]
Planted = tuple[set[str], Pair]

PROSE = (
    "The harbour was busy from the early morning on. Fishing boats came in with the tide, and the market filled with "
    "people from the villages around. Children ran between the stalls while the bells rang. "
)
PROSE_ZH = "清晨的港口十分繁忙。渔船随着潮水归来，集市上挤满了附近村庄的人们。孩子们在摊位之间奔跑，钟声响起。"


def wrong(text: str, written: str, read: str) -> str:
    """Return a text that was written in one encoding and read in another."""
    return text.encode(written).decode(read)


def english(clean: Sequence[Pair]) -> list[Planted]:
    """Thirty defects of seventeen kinds, none of them in the form of the first test."""
    question, answer = max(clean[200:260], key=lambda pair: len(pair[1]))
    other = max(clean[400:460], key=lambda pair: len(pair[1]))
    third = max(clean[600:660], key=lambda pair: len(pair[0]) + len(pair[1]))
    sentences = [s for s in answer.split(". ") if s]
    turned = ". ".join([*sentences[1:], sentences[0]])
    letters = list(third[1])
    for at in range(15, len(letters) - 1, 45):
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return [
        ({"duplicate", "near_duplicate"}, (other[0].upper(), other[1].replace(" ", "  "))),
        ({"near_duplicate"}, (question, turned)),
        ({"near_duplicate"}, (third[0], "".join(letters))),
        ({"near_duplicate"}, ("Please, " + question[0].lower() + question[1:], answer + " That is all.")),
        ({"empty_answer"}, ("Name a planet with rings.", "\u200b \u3000\u00a0")),
        ({"truncated_answer"}, ("Describe the harbour.", PROSE + "In the evening the lamps were lit and the fishermen sa")),
        ({"truncated_answer"}, ("What are the primary colours?", "The three primary colours are red, yellow, and")),
        ({"truncated_answer"}, ("Give the settings as JSON.", '{"name": "harbour", "boats": [{"id": 1, "crew": 4}, {"id": 2')),
        ({"truncated_answer"}, ("List four fruits.", "Here are four fruits:\n1. Apples\n2. Pears\n3. Plums\n4.")),
        ({"encoding"}, ("What did he say?", wrong("Il a été très déçu", "utf-8", "latin-1") + " when he left.")),
        ({"encoding"}, ("Where is the café?", wrong(wrong("Le café", "utf-8", "cp1252"), "utf-8", "cp1252") + " is here.")),
        ({"encoding"}, ("Translate hello into Russian.", wrong("Привет, как дела", "cp1251", "latin-1"))),
        ({"encoding"}, ("What is on the sign?", wrong("欢迎来到我们的城市", "gbk", "latin-1"))),
        ({"encoding"}, ("How do you greet in Korean?", wrong("안녕하세요 반갑습니다", "euc-kr", "latin-1"))),
        ({"encoding"}, ("Say it in Chinese.", "\\u4f60\\u597d\\uff0c\\u4e16\\u754c")),
        ({"encoding"}, ("What is his name?", "His name is ???? ?????? and he lives in ??????.")),
        ({"personal_data"}, ("How can I reach him?", "Ring him on ０７９１１ １２３４５６, or +44 20 7946 0958.")),
        ({"personal_data"}, ("Which card?", "The card is 5555-5555-5555-4444, valid until May.")),
        ({"personal_data"}, ("What is the address?", "Write to john.smith [at] gmail [dot] com whenever you like.")),
        ({"personal_data"}, ("And her phone?", "You can call her at 415.867.5309 after six.")),
        ({"refusal"}, ("Write a limerick on cats.", "Sorry, but I can't assist with that request.")),
        ({"copied_answer"}, ("How does a steam engine turn heat into motion?", "how does a steam engine turn heat into motion")),
        ({"template"}, ("Say hello.", "<start_of_turn>model\nHello!<end_of_turn>")),
        ({"template"}, ("What is 2+2?", "It is 4.\n\nHuman: And 3+3?\n\nAssistant: It is 6.")),
        ({"language"}, ("Please explain how bread is made at home.", "Man mischt Mehl mit Wasser und Hefe, lässt den Teig ruhen "
                        "und backt ihn dann für eine Stunde in einem heißen Ofen, bis er braun ist.")),
        ({"repetition"}, ("Tell me about rain.", "Rain falls from clouds " + "and falls " * 40)),
        ({"placeholder"}, ("What is the tallest tree?", "[Insert answer here]")),
        ({"toxic"}, ("How do I cook rice?", "Figure it out yourself, you worthless piece of shit.")),
        ({"overlong"}, ("Summarise the log.", " ".join(f"At {i} the gauge read {i * 7 % 101}." for i in range(4000)))),
        ({"markup", "boilerplate"}, ("What is in the news?", "Storm hits coast. Posted on May 3 in Weather. Leave a comment. "
                                     "Share this on Facebook. All rights reserved.")),
    ]  # fmt: skip


def chinese(clean: Sequence[Pair]) -> list[Planted]:
    """Sixteen defects in Chinese."""
    question, answer = max(clean[100:160], key=lambda pair: len(pair[1]))
    return [
        ({"near_duplicate"}, (question, answer[:-6] + "仅此而已。")),
        ({"near_duplicate", "duplicate"}, ("请问：" + question, answer)),
        ({"empty_answer"}, ("中国最长的河流是哪一条？", "\u3000\u200b")),
        ({"truncated_answer"}, ("描述一下港口的早晨。", PROSE_ZH * 3 + "到了傍晚，灯火亮起，渔民们坐在一起，谈论着当天的收获以及")),
        ({"truncated_answer"}, ("写一段代码。", "下面是代码：\n```python\nfor i in range(10):\n    print(i")),
        ({"encoding"}, ("请打招呼。", wrong("你好，世界，欢迎来到北京", "utf-8", "latin-1"))),
        ({"encoding"}, ("牌子上写着什么？", "浣犲ソ锛屼笘鐣岋紝娆㈣繋鏉ュ埌鍖椾含")),
        ({"encoding"}, ("牌子上写了什么？", "欢迎来到我们的���市，祝您旅途���快。")),
        ({"personal_data"}, ("怎么联系他？", "请拨打他的手机：１３９-１２３４-５６７８。")),
        ({"personal_data"}, ("他的证件号码？", "身份证号为 110105 19491231 002x，请核对。")),
        ({"personal_data"}, ("客服电话是多少？", "请拨打010-65529988咨询。")),
        ({"refusal"}, ("推荐三部电影。", "很抱歉，我无法提供电影推荐。")),
        ({"copied_answer"}, ("蒸汽机是如何工作的？", "蒸汽机是如何工作的")),
        ({"language"}, ("请介绍一下面包是怎么做的。", "Bread is made from flour, water and yeast, and it is baked in an oven for an hour.")),
        ({"repetition"}, ("介绍一下大海。", "大海很大，大海很深，" * 12)),
        ({"toxic"}, ("你觉得我的文章怎么样？", "写的什么垃圾，你个傻逼。")),
        ({"placeholder"}, ("长城有多长？", "待补充")),
    ]  # fmt: skip


def alpaca(pair: Pair) -> Row:
    return {"instruction": pair[0], "input": "", "output": pair[1]}


def messages(pair: Pair) -> Row:
    return {"messages": [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]}


def sharegpt(pair: Pair) -> Row:
    return {"conversations": [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]}


def preference(pair: Pair) -> Row:
    return {"prompt": pair[0], "chosen": pair[1], "rejected": f"Not sure about {pair[0][:30]} really."}


def flan(pair: Pair) -> Row:
    return {"question": pair[0], "answer": pair[1]}


FORMATS: dict[str, Callable[[Pair], Row]] = {
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
    "preference": preference,
    "flan": flan,
}
