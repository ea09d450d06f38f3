"""Very simple Chinese stories, sentences and talks from our own templates; the plots are in plots_chinese.txt."""

import random

from grammar import plots, tell, words

GIRLS = words(
    "小红，小丽，小美，小芳，小雪，小月，小兰，小花，小云，小梅，丽丽，芳芳，圆圆，甜甜，婷婷，玲玲，小雨，小文，小青，小玉"
)
BOYS = words(
    "小明，小刚，小军，小强，小华，小杰，小龙，小天，小东，小林，明明，亮亮，乐乐，冬冬，壮壮，小宝，小虎，小海，小山，小石"
)
ANIMALS = words("""
    小狗，小猫，小兔子，小熊，小猴子，小鸟，小鱼，小鸭子，小鸡，小羊，小牛，小马，小猪，小老鼠，小狐狸，小青蛙，
    小松鼠，小乌龟，小刺猬，小蚂蚁，小蜜蜂，小蝴蝶，小象，小老虎，小狮子，小鹿，小鹅，小蜗牛，小熊猫，小燕子
""")
TRAITS = words("可爱，勇敢，聪明，善良，安静，快乐，害羞，好奇，活泼，细心，热心，调皮，听话，认真，温柔，大方")
COLORS = words("红色，蓝色，绿色，黄色，白色，黑色，粉色，紫色，金色，灰色")
TOYS = words(
    "皮球，风筝，娃娃，小汽车，书，帽子，气球，铅笔，书包，雨伞，钥匙，杯子，鞋子，围巾，小船，小鼓，手套，小火车，积木，画笔，铃铛，毯子"
)
FOODS = words(
    "苹果，香蕉，饼干，蛋糕，面包，鸡蛋，西瓜，桃子，梨，橘子，胡萝卜，饺子，糖果，葡萄，草莓，包子，玉米，花生，米饭，面条"
)
PLACES = words(
    "公园里，森林里，花园里，河边，海边，湖边，山上，学校里，田野里，草地上，院子里，村子里，大树下，市场里，城市里，农场里，动物园里，家里"
)
HIDING = words(
    "床下，门后面，盒子里，桌子下，大树后面，草丛里，叶子下，椅子下，篮子里，石头后面，柜子里，山洞里，桥下，窗户旁边，沙发后面，树上"
)
GAMES = words("捉迷藏，踢球，跳绳，放风筝，跑步，唱歌，画画，搭积木，堆雪人，玩水，跳舞，讲故事，荡秋千，拍皮球")
WEATHER = words("晴朗，寒冷，温暖，下雨，刮风，下雪，炎热，凉快")
SHELTERS = words("大树下，桥下，山洞里，门口，亭子里")
FINE = words("好，晴朗，暖和，凉快")
FRUITS = words("苹果，桃子，梨，橘子，葡萄")
SENTENCES = "单句"  # the plot that is no story
HELPERS = words("妈妈，爸爸，奶奶，爷爷，哥哥，姐姐，老师，叔叔，阿姨")
TIMES = words(
    "有一天，一天早上，一天下午，星期天，放学以后，春天到了，夏天的一天，秋天的一天，冬天的一天，昨天，今天早上，一天晚上"
)
SKILLS = [
    tuple(line.split("/"))
    for line in """骑自行车/从车上摔了下来/能骑着车在院子里跑了
游泳/喝了几口水/能游到对面去了
放风筝/风筝掉在了地上/把风筝放得很高很高
画马/画得像一只猫/画出了一匹漂亮的马
爬树/滑了下来/坐到了高高的树枝上
唱歌/忘记了歌词/唱完了整首歌
写字/把字写歪了/写出了很好看的字
跳绳/被绳子绊倒了/一口气跳了二十下
做饭/把饭做糊了/做出了香香的饭菜
滑冰/摔倒在冰上/在冰上转了一个大圈
折纸船/把纸弄破了/折出了一只漂亮的纸船
数数/数错了/从一数到了一百""".splitlines()
]
FEARS = [
    tuple(line.split("/"))
    for line in """黑夜/打开了小灯/看见屋子里只有自己的玩具
打雷/慢慢地数到十/听见雷声越来越远了
大狗/轻轻地伸出手/发现大狗很喜欢自己
水/先把一只脚放进水里/发现水很温暖
高高的滑梯/一步一步走上去/笑着滑了下来
打针/深深地吸了一口气/发现一点儿也不疼
小虫子/仔细地看了看小虫子/发现它很漂亮
陌生人/小声地说了一句你好/看见对方笑了
过桥/看着前面慢慢地走/安全地走到了对面""".splitlines()
]
TROUBLES = [
    tuple(line.split("/"))
    for line in """掉进了一个坑里/找来一根长长的木头/从坑里爬了出来
被网缠住了/用剪刀剪开了网/自由了
迷路了/拿着灯走在前面/找到了回家的路
脚受伤了/用布把伤口包好/又能走路了
口渴得走不动了/送来了清清的水/有了力气
卡在泥里出不来/用绳子用力地拉/从泥里出来了
又冷又饿/送来了毯子和热汤/觉得暖和了
爬到树上下不来/搬来了一个梯子/慢慢地下来了
翅膀受伤了/把它带回家照顾/又能飞了""".splitlines()
]
CAUSES = [
    tuple(line.split("/"))
    for line in """下雨了/打着伞去上学
天黑了/打开了灯
天气很冷/穿上了厚厚的衣服
肚子饿了/吃了两个包子
口渴了/喝了一大杯水
太累了/很早就睡觉了
生病了/去医院看医生
手脏了/用水把手洗干净
起得太晚/上学迟到了
考试考得很好/笑得很开心
刮大风了/把窗户关上了
太阳出来了/到外面去玩
花没有水了/给花浇水
房间很乱/把玩具放回盒子里
朋友生病了/送去了一些水果
路上有很多车/小心地过马路
雪下得很大/在院子里堆了一个雪人
书很有意思/看了整整一个下午""".splitlines()
]


MEASURES = {
    "书": "本",
    "铅笔": "支",
    "画笔": "支",
    "小汽车": "辆",
    "雨伞": "把",
    "钥匙": "把",
    "帽子": "顶",
    "小船": "只",
    "鞋子": "双",
}
MEASURES |= {"手套": "双", "围巾": "条", "毯子": "条", "小火车": "列", "积木": "块"}


def slots_for(rng: random.Random) -> dict[str, str]:
    """Draw one cast, with everything that any plot asks for."""
    is_girl = rng.random() < 0.5
    x, y = rng.choice(GIRLS if is_girl else BOYS), rng.choice(GIRLS + BOYS)
    while y == x:
        y = rng.choice(GIRLS + BOYS)
    kind, pronoun = ("小女孩", "她") if is_girl else ("小男孩", "他")
    animal, animal2 = rng.sample(ANIMALS, 2)
    thing = rng.choice(TOYS)
    if rng.random() < 0.15:  # an animal as the hero
        kind, x, pronoun = animal, animal, "它"
        animal = rng.choice([other for other in ANIMALS if other not in (animal, animal2)])
    food, hiding, game = rng.sample(FOODS, 2), rng.sample(HIDING, 2), rng.sample(GAMES, 2)
    skill, fear, trouble, cause = rng.choice(SKILLS), rng.choice(FEARS), rng.choice(TROUBLES), rng.choice(CAUSES)
    slots = {"x": x, "y": y, "kind": kind, "ta": pronoun, "trait": rng.choice(TRAITS)}
    slots |= {"animal": animal, "animal2": animal2, "thing": thing, "m_thing": MEASURES.get(thing, "个")}
    slots |= {"color": rng.choice(COLORS), "food": food[0], "food2": food[1], "place": rng.choice(PLACES)}
    slots |= {
        "shelter": rng.choice(SHELTERS),
        "hiding": hiding[0],
        "hiding2": hiding[1],
        "game": game[0],
        "game2": game[1],
    }
    slots |= {"helper": rng.choice(HELPERS), "time": rng.choice(TIMES), "fine": rng.choice(FINE)}
    slots |= dict(zip(("skill", "fail", "win"), skill)) | dict(zip(("fear", "brave", "result"), fear))
    slots |= dict(zip(("trouble", "help", "saved"), trouble)) | dict(zip(("cause", "effect"), cause))
    return slots | {"food_plant": rng.choice(FRUITS)}


def chinese_story(rng: random.Random) -> str:
    """Return one story of 80 to 200 characters."""
    known = plots("chinese")
    return tell(known[rng.choice([name for name in known if name != SENTENCES])], slots_for(rng), rng, joint="")


def chinese_sentences(rng: random.Random) -> str:
    """Return a few sentences with one cast: causes, likes, where things are, short talk."""
    return tell(plots("chinese")[SENTENCES], slots_for(rng), rng, joint="")
