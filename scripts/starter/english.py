"""Very simple English stories from our own templates: the part of the corpus whose logic always holds.

The sampled stories teach vocabulary and grammar but lose their thread; these keep it (who lost what, where it was).
The plots are in plots_english.txt.
"""

import random

from grammar import a, plots, tell, words

GIRLS = words("""
    Lily, Mia, Anna, Sara, Emma, Lucy, Molly, Ella, Rosie, Daisy, Nora, Zoe, Amy, Kate, Jane, Sue, Mary, Ruby, Grace,
    Lola, Eva, Ivy, Maya, Rita, Tina, Nina, Clara, Alice, Bella, Holly
""")
BOYS = words("""
    Tom, Tim, Ben, Max, Sam, Jack, Leo, Bob, Jim, Dan, Adam, Luke, Noah, Finn, Oscar, Billy, Peter, Paul, Mark, Joe,
    Eric, Hugo, Toby, Alex, Ryan, Owen, Henry, Fred, Theo, Jake
""")
ANIMALS = words("""
    dog, cat, rabbit, bear, fox, mouse, frog, duck, bird, squirrel, owl, turtle, hedgehog, lamb, pony, goat, kitten,
    puppy, monkey, elephant, lion, deer, pig, hen, goose, snail, bee, butterfly, ant, ladybug, panda, otter, beaver,
    donkey, cow
""")
PET_NAMES = words("""
    Spot, Fluffy, Max, Bubbles, Coco, Teddy, Pip, Snowy, Biscuit, Honey, Nibbles, Patch, Pepper, Sunny, Whiskers,
    Buddy, Dot, Ginger, Hop, Milo
""")
TRAITS = words("""
    little, kind, brave, shy, happy, clever, curious, gentle, funny, quiet, cheerful, young, friendly, lazy, careful,
    silly
""")
COLORS = words("red, blue, green, yellow, pink, purple, orange, brown, white, black, gold")
TOYS = words("""
    ball, kite, doll, toy car, teddy bear, drum, boat, train, robot, hat, scarf, book, bell, balloon, bucket, cup,
    ring, whistle, puzzle, blanket, lamp, key, shoe, mitten, button, spoon, brush, flute
""")
FOODS = words("""
    apple, cookie, cake, banana, sandwich, carrot, pear, muffin, pie, bun, orange, peach, pancake, tomato, plum, nut,
    egg, slice of bread, bowl of soup, piece of cheese, bag of cherries, jar of honey, bowl of rice, cup of milk
""")
PLACES = words("""
    in the park, in the forest, in the garden, at the beach, by the river, by the pond, on the farm, at school,
    on the hill, in the yard, near the lake, under the old tree, at the market, in the meadow, by the sea,
    in the village, at the zoo, in the city
""")
HIDING = words("""
    under the bed, behind the door, in the box, under the table, behind the tree, in the grass, under a leaf,
    behind the sofa, in the basket, on the roof, under the bridge, in the bushes, behind a rock, on the shelf,
    in the mud, up in the tree
""")
GAMES = words("""
    tag, hide and seek, catch, with a ball, with blocks, in the sand, in the snow, in the leaves, on the swings,
    in the water
""")
WEATHER = words("sunny, cold, windy, rainy, warm, cloudy, snowy, hot, bright, quiet")
HELPERS = words("mom, dad, grandma, grandpa, brother, sister, teacher, aunt, uncle")
CUPS = words("cup, plate, vase, bowl")
FRUITS = words("sweet apple, red tomato, big pumpkin, juicy pear, yellow lemon")
SHELTERS = words("under the bridge, in a small cave, under a roof, in the barn, under a big tree")
FAMILY = words("mom, dad, grandma, grandpa")  # said without "his" or "her"
SKILLS = [
    tuple(line.split("/"))
    for line in """ride a bike/fell off the bike/rode all around the yard
swim/swallowed some water/swam across the pond
fly a kite/dropped the kite/made the kite fly high in the sky
climb the tree/slid down again/sat on a high branch
tie a knot/made a mess with the string/tied a good knot
jump over the log/bumped into the log/jumped right over the log
sing a song/forgot the words/sang the whole song
draw a horse/drew a funny potato/drew a beautiful horse
bake bread/burned the bread/baked soft and warm bread
build a tower/saw the tower fall down/built a very tall tower
catch a ball/missed the ball/caught the ball with both hands
whistle/made only a little wind/whistled a happy tune
skate/fell on the ice/skated in a big circle
write a name/broke the pencil/wrote the name in big letters
dance/stepped on a toe/danced like a leaf in the wind
row a boat/went round and round/rowed to the other side""".splitlines()
]
FEARS = [
    tuple(line.split("/"))
    for line in """the dark/held a small lamp/saw that there were only toys in the room
the water/put one foot in the water/saw that the water was warm and soft
thunder/counted to ten/heard that the storm was going away
the big dog/held out a hand/felt the dog lick it
the high slide/went up one step at a time/slid down with a loud laugh
the doctor/took a deep breath/found that it did not hurt at all
the old house/knocked on the door/met a nice old woman inside
the tall bridge/looked straight ahead/came safely to the other side
spiders/looked at a spider very closely/saw that it was making a pretty web
loud music/clapped along with the drum/found that it was fun to dance
the deep cave/lit a candle/found only a family of sleepy bats
new people/said a quiet hello/got a warm smile""".splitlines()
]
TROUBLES = [
    tuple(line.split("/"))
    for line in """stuck in a hole/made a ramp with a long stick/climbed out
caught in a net/bit the net with sharp teeth/was free again
too tired to walk/made a bed of soft leaves/slept until the morning
lost in the fog/rang a little bell/followed the sound home
hurt on one foot/put a bandage on the foot/could walk again
very thirsty/brought some cold water/drank it all
stuck in the mud/pulled with a strong rope/came out with a loud pop
cold and wet/brought a warm blanket/felt warm again
up in a tall tree/got a long ladder/came down step by step
locked in the shed/found the key under a pot/ran outside""".splitlines()
]


def slots_for(rng: random.Random) -> dict[str, str]:
    """Draw one cast, with everything that any plot asks for; all slots of one story agree with each other."""
    is_girl, is_girl2 = rng.random() < 0.5, rng.random() < 0.5
    trait, trait2 = rng.sample(TRAITS, 2)
    animal, animal2 = rng.sample(ANIMALS, 2)
    thing, thing2 = rng.sample(TOYS, 2)
    food, food2 = rng.sample(FOODS, 2)
    color, color2 = rng.sample(COLORS, 2)
    place, hiding, game = rng.sample(PLACES, 2), rng.sample(HIDING, 2), rng.sample(GAMES, 2)
    x, y = rng.sample(GIRLS if is_girl else BOYS, 2)
    y = rng.choice([y, rng.choice([name for name in (GIRLS if is_girl2 else BOYS) if name != x])])
    kind = "girl" if is_girl else "boy"
    if rng.random() < 0.25:  # an animal as the hero, with a name
        kind = rng.choice([other for other in ANIMALS if other not in (animal, animal2)])
        x = rng.choice([name for name in PET_NAMES if name != y])
    slots = people_slots(x, y, kind, trait, is_girl) | event_slots(rng, is_girl)
    slots |= {"trait": trait2, "animal": animal, "animal2": animal2, "a_animal2": a(animal2)}
    slots |= {"a_animal": a(rng.choice([animal, f"{trait2} {animal}"])), "pet": rng.choice(PET_NAMES)}
    slots |= {"thing": thing, "a_thing": a(thing), "color": color, "a_color_thing": a(f"{color} {thing}")}
    slots |= {"a_new_thing": f"a new {color} {thing}", "a_color_thing2": a(f"{color2} {thing2}")}
    slots |= {"food": food, "a_food": a(food), "a_food2": a(food2), "a_food_plant": a(rng.choice(FRUITS))}
    slots |= {
        "place": place[0],
        "out": way_to(place[1]),
        "shelter": rng.choice(SHELTERS),
        "weather": rng.choice(WEATHER),
    }
    slots |= {"hiding": hiding[0], "hiding2": hiding[1], "game": game[0], "game2": game[1], "what": "what"}
    return slots


def people_slots(x: str, y: str, kind: str, trait: str, is_girl: bool) -> dict[str, str]:
    """Name the hero `x` and the friend `y`, with the pronouns."""
    slots = {"x": x, "y": y, "kind": kind, "a_trait": a(trait), "child": f"{a(trait)} {kind} named {x}"}
    pronouns = ("she", "her", "her") if is_girl else ("he", "his", "him")
    return slots | dict(zip(("he", "his", "him"), pronouns)) | {"he2": "She" if y in GIRLS else "He"}


def event_slots(rng: random.Random, is_girl: bool) -> dict[str, str]:
    """Draw what happens: a skill, a fear, a trouble, something that breaks, and who helps."""
    helper = rng.choice(HELPERS)
    skill, fear, trouble = rng.choice(SKILLS), rng.choice(FEARS), rng.choice(TROUBLES)
    cup = rng.choice(CUPS)
    slots = {"helper": helper, "the_helper": helper, "cup": cup, "a_cup": a(cup)}
    if helper not in FAMILY:
        slots["the_helper"] = f"{'her' if is_girl else 'his'} {helper}"
    slots |= dict(zip(("skill", "fail", "win"), skill)) | dict(zip(("fear", "brave", "result"), fear))
    return slots | dict(zip(("trouble", "help", "saved"), trouble))


def way_to(place: str) -> str:
    """Turn "in the park" into "to the park"."""
    return "to school" if place == "at school" else "to the " + place.split(" the ", 1)[1]


def english_story(rng: random.Random) -> str:
    """Return one story of 50 to 150 words."""
    known = plots("english")
    return tell(known[rng.choice(list(known))], slots_for(rng), rng)
