"""Very simple Chinese stories, sentences and talks from our own templates (simplified characters)."""

import random

from grammar import tell, words

GIRLS = words("小红，小丽，小美，小芳，小雪，小月，小兰，小花，小云，小梅，丽丽，芳芳，圆圆，甜甜，婷婷，玲玲，小雨，小文，小青，小玉")
BOYS = words("小明，小刚，小军，小强，小华，小杰，小龙，小天，小东，小林，明明，亮亮，乐乐，冬冬，壮壮，小宝，小虎，小海，小山，小石")
ANIMALS = words("""小狗，小猫，小兔子，小熊，小猴子，小鸟，小鱼，小鸭子，小鸡，小羊，小牛，小马，小猪，小老鼠，小狐狸，小青蛙，小松鼠，
    小乌龟，小刺猬，小蚂蚁，小蜜蜂，小蝴蝶，小象，小老虎，小狮子，小鹿，小鹅，小蜗牛，小熊猫，小燕子""")
TRAITS = words("可爱，勇敢，聪明，善良，安静，快乐，害羞，好奇，活泼，细心，热心，调皮，听话，认真，温柔，大方")
COLORS = words("红色，蓝色，绿色，黄色，白色，黑色，粉色，紫色，金色，灰色")
TOYS = words("皮球，风筝，娃娃，小汽车，书，帽子，气球，铅笔，书包，雨伞，钥匙，杯子，鞋子，围巾，小船，小鼓，手套，小火车，积木，画笔，铃铛，毯子")
FOODS = words("苹果，香蕉，饼干，蛋糕，面包，鸡蛋，西瓜，桃子，梨，橘子，胡萝卜，饺子，糖果，葡萄，草莓，包子，玉米，花生，米饭，面条")
PLACES = words("公园里，森林里，花园里，河边，海边，湖边，山上，学校里，田野里，草地上，院子里，村子里，大树下，市场里，城市里，农场里，动物园里，家里")
HIDING = words("床下，门后面，盒子里，桌子下，大树后面，草丛里，叶子下，椅子下，篮子里，石头后面，柜子里，山洞里，桥下，窗户旁边，沙发后面，树上")
GAMES = words("捉迷藏，踢球，跳绳，放风筝，跑步，唱歌，画画，搭积木，堆雪人，玩水，跳舞，讲故事，荡秋千，拍皮球")
WEATHER = words("晴朗，寒冷，温暖，下雨，刮风，下雪，炎热，凉快")
HELPERS = words("妈妈，爸爸，奶奶，爷爷，哥哥，姐姐，老师，叔叔，阿姨")
TIMES = words("有一天，一天早上，一天下午，星期天，放学以后，春天到了，夏天的一天，秋天的一天，冬天的一天，昨天，今天早上，一天晚上")
SKILLS = [tuple(line.split("/")) for line in """骑自行车/从车上摔了下来/能骑着车在院子里跑了
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
数数/数错了/从一数到了一百""".splitlines()]
FEARS = [tuple(line.split("/")) for line in """黑夜/打开了小灯/看见屋子里只有自己的玩具
打雷/慢慢地数到十/听见雷声越来越远了
大狗/轻轻地伸出手/发现大狗很喜欢自己
水/先把一只脚放进水里/发现水很温暖
高高的滑梯/一步一步走上去/笑着滑了下来
打针/深深地吸了一口气/发现一点儿也不疼
小虫子/仔细地看了看小虫子/发现它很漂亮
陌生人/小声地说了一句你好/看见对方笑了
过桥/看着前面慢慢地走/安全地走到了对面""".splitlines()]
TROUBLES = [tuple(line.split("/")) for line in """掉进了一个坑里/找来一根长长的木头/从坑里爬了出来
被网缠住了/用剪刀剪开了网/自由了
迷路了/拿着灯走在前面/找到了回家的路
脚受伤了/用布把伤口包好/又能走路了
口渴得走不动了/送来了清清的水/有了力气
卡在泥里出不来/用绳子用力地拉/从泥里出来了
又冷又饿/送来了毯子和热汤/觉得暖和了
爬到树上下不来/搬来了一个梯子/慢慢地下来了
翅膀受伤了/把它带回家照顾/又能飞了""".splitlines()]
CAUSES = [tuple(line.split("/")) for line in """下雨了/打着伞去上学
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
书很有意思/看了整整一个下午""".splitlines()]

PLOTS = {
    "丢失": """
从前，有一个{trait}的{kind}，名字叫{x}。 | {x}是一个{trait}的{kind}。 | 有一个{kind}叫{x}。
{ta}有一{m_thing}{color}的{thing}。 | {x}最喜欢自己的{color}{thing}。 | {ta}每天都带着{color}的{thing}。

{time}，{x}的{thing}不见了。 | {time}，{x}找不到自己的{thing}了。
{ta}很难过。 | {x}急得哭了起来。 | {x}又着急又伤心。
{ta}在{hiding2}找了找，可是没有找到。 | {ta}看了看{hiding2}，那里什么也没有。
“你怎么了？”{y}问。 | {y}走过来问：“你为什么哭？” | {y}看见了，问：“{x}，你怎么不高兴？”
“我的{thing}不见了。”{x}说。 | {x}说：“我找不到我的{color}{thing}了。”
“别着急，我来帮你找。”{y}说。 | {y}说：“我们一起找吧。” | {y}说：“不要哭，我们一定能找到。”

他们找了很久。 | 他们到处找。 | 他们一起找啊找。
最后，{y}在{hiding}找到了{thing}。 | 忽然，{y}叫了起来：“在这里！”原来{thing}就在{hiding}。
“谢谢你，{y}！”{x}高兴地说。 | {x}笑了，说：“谢谢你！” | {x}高兴得跳了起来。
? 从那以后，{x}总是把{thing}放好。 | 他们成了好朋友。 | 他们一起玩了一个下午。
""",
    "分享": """
{time}，{x}在{place}吃{food}。 | {time}，{helper}给了{x}很多{food}。 | {x}带着{food}来到{place}。
{food}又香又甜。 | {x}很饿，想一个人吃。 | ? {x}最喜欢吃{food}。
这时候，{y}来了。 | {ta}看见{y}一个人坐在那里。 | {y}走过来，看着{food}。

“你饿了吗？”{x}问。 | {x}问：“你想吃吗？”
“是的，我很饿。”{y}说。 | {y}说：“我今天没有吃饭。” | {y}点点头。
{x}想了想，把{food}分给{y}一半。 | {x}说：“给你吃吧，我们一起吃。” | {x}把{food}分给了{y}。
“真好吃！谢谢你。”{y}说。 | {y}笑着说：“谢谢你，你真好。”
他们一起吃，觉得很快乐。 | 两个好朋友吃得很高兴。 | {x}明白了，分享让人快乐。
? 第二天，{y}也带来了{food2}，请{x}一起吃。
""",
    "勇敢": """
{x}是一个{trait}的{kind}。 | 从前有一个{kind}，叫{x}。
{ta}什么都好，就是怕{fear}。 | {ta}很怕{fear}。 | 每次遇到{fear}，{ta}都很害怕。
{time}，{helper}对{ta}说：“不要怕，我和你在一起。” | {time}，{y}对{ta}说：“以前我也怕，现在不怕了。”
{x}的心跳得很快。 | {x}还是有点儿怕，但是{ta}想试一试。 | “我来试试。”{x}小声说。

{ta}{brave}。 | 于是，{ta}{brave}。
过了一会儿，{ta}{result}。 | 然后，{ta}{result}。
“我不怕了！”{x}大声说。 | {x}笑了：“原来没有什么可怕的。” | {helper}说：“你真勇敢！”
从那以后，{x}再也不怕{fear}了。 | {x}觉得自己长大了。 | {x}非常开心。
""",
    "学习": """
{x}想学{skill}。 | {time}，{x}看见{y}在{skill}，{ta}也想学。 | {x}很想学会{skill}。
第一次，{ta}{fail}。 | 刚开始的时候，{ta}{fail}。 | {ta}试了试，可是{fail}。
“太难了，我不学了。”{x}说。 | {x}很难过，不想学了。 | {ta}有点儿生气。
{helper}说：“不要放弃，再试一次。” | {helper}笑着说：“慢慢来，你一定能学会。”

{x}听了{helper}的话，每天都练习。 | {ta}一次又一次地练习。 | 第二天，{ta}又开始练习。
终于，{ta}{win}。 | 过了几天，{ta}{win}。
“我学会了！”{x}高兴地喊。 | 大家都为{ta}高兴。 | {helper}说：“你真棒！”
? {x}明白了，只要努力，就能成功。
""",
    "帮助": """
{time}，{x}在{place}散步。 | {time}，{x}去{place}玩。 | {x}和{helper}走在{place}。
忽然，{ta}听见有人在哭。 | “救救我！”一个小小的声音说。 | {ta}听到了一个声音。
{x}走过去一看，原来是一只{animal}。 | 那里有一只{animal}。
{animal}{trouble}。 | 可怜的{animal}{trouble}。

“别怕，我来帮你。”{x}说。 | {x}说：“你等一等，我有办法。” | {x}想了一个好办法。
{ta}{help}。 | {x}马上{help}。
不一会儿，{animal}{saved}。 | 最后，{animal}{saved}。
“谢谢你！”{animal}说。 | {animal}高兴地说：“你真是我的好朋友。”
“不用谢。”{x}笑着说。 | {x}的心里暖暖的。 | 从那天起，他们成了好朋友。
""",
    "争吵": """
{x}和{y}是好朋友。 | {time}，{x}和{y}在{place}玩。
他们看见了一{m_thing}{color}的{thing}。 | 那里只有一{m_thing}{thing}。
“这是我的！”{x}说。 | {x}说：“我先看见的，给我！”
“不，是我的！”{y}说。 | {y}也想要，两个人吵了起来。
他们都很生气，谁也不理谁。 | {y}哭了。 | 他们都不说话了。

{helper}走过来说：“好朋友要一起玩。” | 过了一会儿，{x}说：“对不起，你先玩吧。” | {helper}问：“为什么不轮流玩呢？”
“对不起。”{y}也说。 | 他们想了想，都笑了。 | “没关系。”{y}说。
于是，{x}先玩，{y}后玩。 | 他们一起玩{thing}，玩得很开心。
两个人又成了好朋友。 | 从那以后，他们再也不吵架了。 | 一起玩比一个人玩更有意思。
""",
    "朋友": """
从前，{place}住着一只{trait}的{animal}。 | 在{place}，有一只{animal}。
它没有朋友，觉得很孤单。 | 它每天一个人玩。 | 它很想有一个朋友。
{time}，它遇见了一只{animal2}。 | {time}，来了一只{animal2}。
“你好！”{animal}说，“我们一起玩吧。” | {animal2}问：“你愿意和我一起玩吗？” | “你叫什么名字？”{animal2}问。
“好啊！”它们都很高兴。 | 它们都笑了。

它们一起{game}，又一起{game2}。 | 它们在{place}{game}，玩得很开心。
? 饿了，它们就一起吃{food}。
太阳下山了，它们说：“明天见！” | “明天你还来吗？”{animal}问。“我一定来。”{animal2}说。
从此，它们天天在一起。 | {animal}再也不孤单了。 | 它们成了最好的朋友。
""",
    "种子": """
{x}有一颗小小的种子。 | {time}，{helper}给了{x}一颗种子。
{ta}把种子种在{place}。 | {x}挖了一个小洞，把种子放进去。
{ta}每天给它浇水。 | {x}天天去看它。
过了很多天，什么也没有。 | “它为什么还不长出来？”{x}问。
{helper}说：“不要急，再等一等。” | {x}耐心地等着。

一天早上，土里长出了一片绿色的小叶子。 | 下了一场雨以后，小芽长出来了。
它越长越高。 | 太阳照着它，它一天天长大。
后来，它开出了{color}的花。 | 最后，树上结满了{food_plant}。
{x}开心极了。 | {x}请大家都来看。 | “这是我种的！”{x}说。
""",
    "天气": """
{time}，{x}和{y}在{place}{game}。
忽然，天黑了下来，下起了大雨。 | 一会儿，风来了，雨也来了。
“快跑！”{x}喊。 | “我们的衣服湿了！”{y}说。
他们跑到{shelter}躲雨。 | {x}拿出一把雨伞，和{y}一起打。
{y}觉得很冷，{x}把衣服给{y}穿。 | 他们一边等，一边唱歌。
雨停了，太阳出来了。 | 过了一会儿，雨小了，天也亮了。
“看，彩虹！”{y}说。 | 天上出现了一道美丽的彩虹。
他们高兴地回家了。 | 他们又开始玩了。
""",
    "诚实": """
{time}，{x}在家里玩。 | {time}，{x}在屋子里跑来跑去。
{ta}不小心把杯子打破了。 | “啪！”花瓶掉在地上，碎了。
{x}很害怕，不知道怎么办。 | {x}的脸一下子红了。
这时候，{helper}走了进来。 | {helper}听见声音，走过来问：“怎么了？”
{x}低着头说：“对不起，是我打破的。” | “是我不小心，对不起。”{x}说。
{helper}没有生气，说：“你说了真话，是个好孩子。” | {helper}摸摸{ta}的头，说：“没关系，下次小心。”
他们一起把地扫干净。 | {x}明白了，做错了事要说真话。
""",
    "礼物": """
明天是{y}的生日。 | {y}的生日快到了。
{x}想送{y}一个礼物。 | “送什么好呢？”{x}想。
可是{ta}没有钱。 | ? {helper}说：“自己做的礼物最好。”
{ta}做了一{m_thing}{color}的{thing}。 | {x}用了一个晚上，做好了一{m_thing}{thing}。
第二天，{x}把礼物送给{y}。 | 生日那天，{y}打开了盒子。
“真漂亮！谢谢你！”{y}说。 | {y}高兴地说：“这是最好的礼物。”
他们一起吃蛋糕，一起{game}。 | {x}也很高兴。
""",
    "一天": """
今天天气很{fine}。 | {time}，天气很{fine}。
{x}和{helper}去{place}玩。 | {helper}带着{x}来到{place}。
{ta}看见一只{animal}在{hiding}。 | 路上，{ta}遇见了一只{animal}。
{animal}看着{ta}，好像在说：“你好！” | “你看，{animal}在吃{food}！”{x}说。
后来，他们一起{game}。 | 中午，他们吃了{food}和{food2}。
晚上，{x}回到家，觉得又累又开心。 | 太阳下山了，他们回家了。
“今天真高兴！”{x}说。 | {x}很快就睡着了。 | {x}想：明天还要来。
""",
}

SENTENCES = """
因为{cause}，所以{x}{effect}。 | {cause}，{x}{effect}。 | {x}{effect}，因为{cause}。
{x}喜欢{game}，{y}喜欢{game2}。 | {x}和{y}一起{game}。 | {x}在{place}{game}。
? {place}有一只{trait}的{animal}。 | 一只{animal}在{hiding}睡觉。 | {animal}喜欢吃{food}。
? {x}有一{m_thing}{color}的{thing}。 | {thing}是{color}的。 | {x}把{thing}放在{hiding}。
? “你要去哪里？”{y}问。“我去{place}。”{x}说。 | “这是什么？”{x}问。“这是{food}。”{helper}说。 | “你喜欢什么？”{y}问。“我喜欢{food}。”{x}说。
"""

MEASURES = {"书": "本", "铅笔": "支", "画笔": "支", "小汽车": "辆", "雨伞": "把", "钥匙": "把", "帽子": "顶", "小船": "只", "鞋子": "双"}
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
    return {
        "x": x, "y": y, "kind": kind, "ta": pronoun, "trait": rng.choice(TRAITS), "animal": animal, "animal2": animal2, "thing": thing,
        "m_thing": MEASURES.get(thing, "个"), "color": rng.choice(COLORS), "food": food[0], "food2": food[1], "place": rng.choice(PLACES),
        "shelter": rng.choice(words("大树下，桥下，山洞里，门口，亭子里")), "hiding": hiding[0], "hiding2": hiding[1], "game": game[0], "game2": game[1], "helper": rng.choice(HELPERS),
        "time": rng.choice(TIMES), "fine": rng.choice(words("好，晴朗，暖和，凉快")), "skill": skill[0], "fail": skill[1], "win": skill[2],
        "fear": fear[0], "brave": fear[1], "result": fear[2], "trouble": trouble[0], "help": trouble[1], "saved": trouble[2],
        "cause": cause[0], "effect": cause[1], "food_plant": rng.choice(words("苹果，桃子，梨，橘子，葡萄")),
    }  # fmt: skip


def chinese_story(rng: random.Random) -> str:
    """Return one story of 80 to 200 characters."""
    return tell(PLOTS[rng.choice(list(PLOTS))], slots_for(rng), rng, joint="")


def chinese_sentences(rng: random.Random) -> str:
    """Return a few sentences with one cast: causes, likes, where things are, short talk."""
    return tell(SENTENCES, slots_for(rng), rng, joint="")
