"""Very simple English stories from our own templates: the part of the corpus whose logic always holds.

The sampled stories teach vocabulary and grammar but lose their thread; these keep it (who lost what, where it was, who found it).
"""

import random

from grammar import a, tell, words

GIRLS = words("""Lily, Mia, Anna, Sara, Emma, Lucy, Molly, Ella, Rosie, Daisy, Nora, Zoe, Amy, Kate, Jane, Sue, Mary, Ruby, Grace, Lola,
    Eva, Ivy, Maya, Rita, Tina, Nina, Clara, Alice, Bella, Holly""")
BOYS = words("""Tom, Tim, Ben, Max, Sam, Jack, Leo, Bob, Jim, Dan, Adam, Luke, Noah, Finn, Oscar, Billy, Peter, Paul, Mark, Joe,
    Eric, Hugo, Toby, Alex, Ryan, Owen, Henry, Fred, Theo, Jake""")
ANIMALS = words("""dog, cat, rabbit, bear, fox, mouse, frog, duck, bird, squirrel, owl, turtle, hedgehog, lamb, pony, goat, kitten, puppy,
    monkey, elephant, lion, deer, pig, hen, goose, snail, bee, butterfly, ant, ladybug, panda, otter, beaver, donkey, cow""")
PET_NAMES = words("""Spot, Fluffy, Max, Bubbles, Coco, Teddy, Pip, Snowy, Biscuit, Honey, Nibbles, Patch, Pepper, Sunny, Whiskers,
    Buddy, Dot, Ginger, Hop, Milo""")
TRAITS = words("little, kind, brave, shy, happy, clever, curious, gentle, funny, quiet, cheerful, young, friendly, lazy, careful, silly")
COLORS = words("red, blue, green, yellow, pink, purple, orange, brown, white, black, gold")
TOYS = words("""ball, kite, doll, toy car, teddy bear, drum, boat, train, robot, hat, scarf, book, bell, balloon, bucket, cup, ring,
    whistle, puzzle, blanket, lamp, key, shoe, mitten, button, spoon, brush, flute""")
FOODS = words("""apple, cookie, cake, banana, sandwich, carrot, pear, muffin, pie, bun, orange, peach, pancake, tomato, plum, nut, egg,
    slice of bread, bowl of soup, piece of cheese, bag of cherries, jar of honey, bowl of rice, cup of milk""")
PLACES = words("""in the park, in the forest, in the garden, at the beach, by the river, by the pond, on the farm, at school, on the hill,
    in the yard, near the lake, under the old tree, at the market, in the meadow, by the sea, in the village, at the zoo, in the city""")
HIDING = words("""under the bed, behind the door, in the box, under the table, behind the tree, in the grass, under a leaf, behind the
    sofa, in the basket, on the roof, under the bridge, in the bushes, behind a rock, on the shelf, in the mud, up in the tree""")
GAMES = words("tag, hide and seek, catch, with a ball, with blocks, in the sand, in the snow, in the leaves, on the swings, in the water")
WEATHER = words("sunny, cold, windy, rainy, warm, cloudy, snowy, hot, bright, quiet")
HELPERS = words("mom, dad, grandma, grandpa, brother, sister, teacher, aunt, uncle")
FAMILY = words("mom, dad, grandma, grandpa")  # said without "his" or "her"
SKILLS = [tuple(line.split("/")) for line in """ride a bike/fell off the bike/rode all around the yard
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
row a boat/went round and round/rowed to the other side""".splitlines()]
FEARS = [tuple(line.split("/")) for line in """the dark/held a small lamp/saw that there were only toys in the room
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
new people/said a quiet hello/got a warm smile""".splitlines()]
TROUBLES = [tuple(line.split("/")) for line in """stuck in a hole/made a ramp with a long stick/climbed out
caught in a net/bit the net with sharp teeth/was free again
too tired to walk/made a bed of soft leaves/slept until the morning
lost in the fog/rang a little bell/followed the sound home
hurt on one foot/put a bandage on the foot/could walk again
very thirsty/brought some cold water/drank it all
stuck in the mud/pulled with a strong rope/came out with a loud pop
cold and wet/brought a warm blanket/felt warm again
up in a tall tree/got a long ladder/came down step by step
locked in the shed/found the key under a pot/ran outside""".splitlines()]

PLOTS = {
    "lost": """
Once upon a time, there was {child}. | There once was {child}. | Once there was {child}.
{X} had {a_color_thing}. | {X} loved {his} {color} {thing} more than anything. | {His} favorite thing was {a_color_thing}.
? {He} took it everywhere. | Every day {he} played with it {place}.

One day, the {thing} was gone. | One {weather} day, {x} could not find the {thing}. | But one morning, the {thing} was not there.
{X} was very sad. | {X} began to cry. | {He} felt sad and worried.
{He} looked {hiding2}, but it was not there. | {He} looked {hiding2}. It was not there.
"{What} is wrong?" asked {y}. | {Y} saw {him} and asked, "Why are you sad?" | "Why are you so sad, {x}?" asked {y}.
"I lost my {thing}," said {x}. | "I can not find my {color} {thing}," said {x}.
"I will help you look," said {y}. | "Do not worry. We will find it," said {y}. | "Let's look together," said {y}.

They looked everywhere. | They looked high and low. | Together they looked and looked.
At last, {y} found the {thing} {hiding}. | Then {y} looked {hiding}. There was the {thing}! | "Here it is!" said {y}. The {thing} was {hiding}.
"Thank you, {y}!" said {x}. | {X} hugged {y} and said, "Thank you!" | {X} was so happy that {he} jumped up and down.
? From that day on, {x} always took good care of the {thing}. | {X} put the {thing} in a safe place. | They played with the {thing} all day.
""",
    "share": """
Once upon a time, {x} had {a_food}. | One day, {x} got {a_food} from {his} {helper}. | {X} was {place}. {He} had {a_food}.
{He} was very hungry. | It smelled so good. | {He} wanted to eat it all.
Then {he} saw {y}. | Then {y} came along. | {Y} was sitting alone {place}.
{Y} looked sad. | {Y} had nothing to eat. | {Y} was hungry too.

"Are you hungry?" asked {x}. | "Do you want some?" asked {x}. | "Why are you sad?" asked {x}.
"Yes, I am," said {y}. "I have no food." | "I forgot my lunch," said {y}. | "I am so hungry," said {y}.
{X} thought for a moment. | {X} looked at the food. | {X} wanted to be kind.
Then {he} gave half of it to {y}. | Then {x} shared the food with {y}. | "We can share," said {x}.

{Y} smiled and said, "Thank you. You are very kind." | "Thank you, {x}!" said {y}. | "This is so yummy," said {y}.
They ate together and were happy. | They sat in the sun and ate. | They both felt full and happy.
? The next day, {y} brought {a_food2} and shared it with {x}. | After that, they were best friends. | {X} learned that sharing is good.
""",
    "fear": """
Once upon a time, there was {child}. | There was {child} {place}.
{X} was afraid of {fear}. | {X} was very scared of {fear}. | {He} liked many things, but {he} did not like {fear}.
? {His} friends laughed, and that made {him} sad. | "I am not brave," {he} said. | {He} always ran away.

One {weather} day, {his} {helper} said, "You can do it. I am here." | One day, {y} said, "I was afraid too. I will go with you."
{X} was still scared, but {he} wanted to try. | {X} took a step. | "I will try," said {x} in a small voice.
{He} {brave}. | Slowly, {he} {brave}.
Then {he} {result}. | After a while, {he} {result}. | And {he} {result}!

"I did it!" said {x}. | {X} laughed. "It is not so bad!" | {X} felt very proud.
{He} was not afraid anymore. | Now {x} knew that {he} was brave. | From that day on, {x} was not scared of {fear}.
""",
    "skill": """
{X} was {a_trait} {kind}. | There was {child}. | Once there was {child}.
{He} wanted to {skill}. | More than anything, {x} wanted to learn to {skill}. | One day, {he} saw {y} {skill}, and {he} wanted to do it too.
{He} tried, but {he} {fail}. | The first time, {he} {fail}. | {X} tried once and {fail}.
"It is too hard," {he} said. | {X} felt sad. | {He} was angry and wanted to stop.

"Do not give up," said {his} {helper}. | {His} {helper} smiled. "Try again. I will help you." | "Everybody has to learn," said {his} {helper}.
So {x} tried again the next day. | {X} tried again and again. | Every day {he} tried a little more.
At last, {he} {win}. | Then one {weather} morning, {he} {win}. | And one day, {x} {win}!
"Look at me!" {he} said. | {His} {helper} clapped. "Well done, {x}!" | Everyone was proud of {him}.
? {X} learned that it is good to keep trying. | That night {he} went to bed with a smile.
""",
    "rescue": """
One {weather} day, {x} went for a walk {place}. | One day, {x} was playing {place}. | {X} and {his} {helper} were walking {place}.
{He} heard a small sound. | "Help! Help!" said a small voice. | Then {he} heard someone crying.
It was {a_animal}. | {X} looked around and saw {a_animal}. | There was {a_animal} nearby.
The {animal} was {trouble}. | The poor {animal} was {trouble}.

"Do not be afraid," said {x}. | "I will help you," said {x}. | "Oh no!" said {x}. "Wait here."
{X} {help}. | {He} had an idea. {He} {help}. | {X} thought fast. Then {he} {help}.
Soon the {animal} {saved}. | The {animal} {saved}. | After a little while, the {animal} {saved}.
"Thank you for helping me," said the {animal}. | "You are my hero," said the {animal}. | The {animal} was so happy and said, "Thank you!"
"You are welcome," said {x}. | {X} smiled. "I like to help." | They waved and said goodbye.
From then on, they were good friends. | {X} went home with a happy heart. | After that, the {animal} came to visit {x} every day.
""",
    "quarrel": """
{X} and {y} were friends. | {X} and {y} were playing {place}. | One day, {x} came to play with {y}.
They saw {a_color_thing}. | There was only one {thing}, and it was {color}. | {X} had {a_new_thing}.
"I want it!" said {x}. | "It is mine!" said {x}. | "Give it to me," said {x}.
"No, I want it!" said {y}. | "No, it is my turn," said {y}. | "But I saw it first," said {y}.
They pulled and pulled. | They were both angry. | They shouted, and {y} began to cry.

Then {the_helper} came and said, "You can take turns." | Then {the_helper} asked, "Why do you fight? You can play together." | {X} stopped. "I am sorry," {he} said.
"That is a good idea," said {y}. | "I am sorry too," said {y}. | {X} and {y} looked at each other.
First {x} played with the {thing}, and then {y} played with it. | They played with the {thing} together. | {X} gave the {thing} to {y}. "You can go first," {he} said.
They were not angry anymore. | They laughed and had a lot of fun. | It was much better than fighting.
? {X} and {y} learned to share.
""",
    "meet": """
Once upon a time, there was {a_trait} {animal} named {pet}. | {Pet} was {a_trait} {animal}. | {A_trait} {animal} lived {place}. Its name was {pet}.
{Pet} had no friends. | {Pet} wanted a friend. | {Pet} was lonely.
One {weather} day, {pet} met {a_animal2}. | One day, {a_animal2} came by. | One morning, {pet} saw {a_animal2} {place}.
"Hello," said {pet}. "Do you want to play?" | "Who are you?" asked {pet}. "I am new here," said the {animal2}. | The {animal2} said, "Hi! Can I play with you?"

"Yes!" said the {animal2}. | "I would love to play," said the {animal2}. | They looked at each other and smiled.
They played {game} all day. | First they played {game}, and then they played {game2}. | They played {game} until the sun went down.
? Then they shared {a_food}. | The {animal2} found {a_food}, and they ate it together.
"This was the best day," said {pet}. | "Will you come back tomorrow?" asked {pet}. "Yes," said the {animal2}. | {Pet} was not lonely anymore.
{Pet} and the {animal2} were friends forever. | And so they became best friends. | The next day they played again.
""",
    "return": """
One day, {x} was walking {place}. | {X} was {place} one {weather} day. | One morning, {x} went out to play {place}.
{He} found {a_color_thing} {hiding}. | {Hiding} {he} saw something {color}. It was {a_thing}.
"What a nice {thing}!" said {x}. | {X} liked it very much and wanted to keep it. | "I wonder whose {thing} this is," said {x}.
? {He} put it in {his} bag.

Then {he} saw {y}. {Y} was crying. | On the way home, {x} met {y}. {Y} looked sad. | A little later, {he} heard {y} cry.
"What is wrong?" asked {x}. | "Why are you crying?" asked {x}.
"I lost my {color} {thing}," said {y}. | "My {thing} is gone," said {y}. "It was {color}."
{X} knew what to do. | {X} thought about it. It was not {his} {thing}. | "Is this your {thing}?" asked {x}.
{He} gave the {thing} to {y}. | {X} took out the {thing} and gave it back. | {X} held out the {color} {thing}.
"Thank you! You are so honest," said {y}. | {Y} stopped crying and hugged {him}. | "You found it!" said {y}. "Thank you, {x}."
{X} felt good inside. | {X} was happy because {he} had done the right thing. | After that, they played together every day.
""",
    "seed": """
{X} found a tiny seed {place}. | One day, {his} {helper} gave {x} a tiny seed. | {X} had a little seed.
"If you take care of it, it will grow," said {the_helper}. | "What will it be?" asked {x}. | {X} wanted to see it grow.
{He} put the seed in the ground and gave it water. | {X} made a hole in the ground and put the seed inside.

Every day, {x} went to look. | {X} waited and waited. | The sun was warm, and {x} brought water every day.
At first, nothing happened. | For many days there was nothing to see. | "Why is it so slow?" asked {x}.
Then one {weather} morning, there was a small green leaf. | But one day, {he} saw something green. | After a week, a little plant came up.
It grew and grew. | The plant got bigger every day. | Soon it was taller than {x}.
In the end, there was a big {color} flower. | At last, it was full of {color} flowers. | And then it gave {a_food_plant}.
{X} was very proud. | "I grew it myself!" said {x}. | {X} showed it to everyone.
""",
    "rain": """
One {weather} morning, {x} and {y} went out to play {place}. | {X} and {y} were playing {game} {place}.
Then the sky became dark. | Big gray clouds came. | Suddenly, the wind began to blow.
It began to rain. | Rain fell on their heads. | Drip, drop, down came the rain.
"I am getting wet!" said {x}. | "Oh no, our game!" said {y}. | "Run!" said {x}.

They ran and hid {shelter}. | They found a dry place {shelter}. | They sat down {shelter} and waited.
{Y} was cold, so {x} shared {his} coat. | They sang a song and told funny stories. | "Let's count the drops," said {x}.
After a while, the rain stopped. | Then the sun came out again. | At last the clouds went away.
"Look!" said {y}. "A rainbow!" | There was a big rainbow in the sky. | They jumped in the puddles and laughed.
It was a wet but happy day. | "I like the rain now," said {x}. | They went home and had {a_food}.
""",
    "mistake": """
{X} liked to help {his} {helper}. | One day, {x} was at home with {his} {helper}. | {X} was playing inside with {a_color_thing}.
"Please be careful," said {his} {helper}. | {He} ran too fast. | {He} did not look where {he} was going.
Crash! The {cup} fell and broke. | {X} bumped into the table, and the {cup} fell down. | Oh no! The {cup} was broken.

{X} was afraid. | {X} wanted to hide. | {X} did not know what to do.
"What happened?" asked {the_helper}. | Then {his} {helper} came in. "What was that?" | {His} {helper} heard the noise.
"I broke it. I am sorry," said {x}. | {X} told the truth. "It was me," {he} said. "I am very sorry."
"Thank you for telling the truth," said {the_helper}. | {His} {helper} was not angry. "It was only {a_cup}," {the_helper} said. | "I am glad you are not hurt," said {the_helper}.
They cleaned up together. | Together they picked up the pieces. | {X} got the broom, and they cleaned the floor.
? Then they had {a_food}. | After that, {x} was more careful. | {X} learned that it is good to tell the truth.
""",
    "gift": """
It was {y}'s birthday. | Tomorrow was {y}'s birthday. | {Y} had a birthday, and {x} was invited.
{X} wanted to give {y} something special. | {X} had no money for a gift. | "What can I give to {y}?" asked {x}.
"You can make something," said {his} {helper}. | {His} {helper} said, "Make it with love." | {X} thought and thought. Then {he} had an idea.
So {x} made {a_color_thing}. | {He} worked all day and made {a_color_thing}. | {X} painted {a_thing} and made it {color}.

At the party, there were many big gifts. | {X} put the gift in a small box. | {X} was a little nervous.
{Y} opened the box and smiled. | "What is it?" asked {y}. {He2} opened it. | {Y} looked inside.
"{A_color_thing}! I love it!" said {y}. | "This is the best gift of all," said {y}. | "You made this for me? Thank you!" said {y}.
{X} was so happy. | {X} and {y} hugged. | Then they ate cake and played {game}.
""",
    "day": """
It was a {weather} day. | One {weather} morning, {x} woke up early.
{X} went {out} with {his} {helper}. | {His} {helper} said, "Today we will go {out}."
First, they saw {a_animal}. | On the way, they saw {a_animal} {hiding}. | {A_animal} was the first thing they saw.
Then they saw {a_color_thing}. | Next, {x} played {game}. | After that, they ate {a_food} together.
"Look at the {animal2}!" said {x}. | "I see {a_animal2}!" said {x}. | Suddenly, {a_animal2} ran by.
"It is so {trait}," said {the_helper}. | "It wants to say hello," said {the_helper}. | "Yes, it is looking for food," said {the_helper}.
In the evening, they went home. | When the sun went down, {x} was tired. | Soon it was time to go home.
"This was a good day," said {x}. | {X} fell asleep with a smile. | "Can we come back tomorrow?" asked {x}.
""",
    "magic": """
Once upon a time, there was a magic {thing}. | Long ago, {x} found a magic {thing} {hiding}. | {X} had {a_color_thing}, and it was magic.
It could talk. | When {x} touched it, it began to shine. | "Make a wish," said the {thing}.
{X} wished for {a_food}. | "I wish for {a_color_thing2}," said {x}. | {X} did not know what to say.
Pop! There it was. | At once, the wish came true. | There was a bright light, and the wish came true.

{X} wished for more and more. | Soon {x} had so many things that there was no room. | Then {x} saw {y}, who had nothing.
But {x} was not happy. | {He} had no one to play with. | {X} thought, "I have enough."
"Now I wish for a friend," said {x}. | So {x} gave the last wish to {y}. | "My last wish is for {y} to be happy," said {x}.
{Y} came and smiled at {him}. | {Y} was so happy and gave {x} a big hug. | From that day on, {x} and {y} played together.
? A friend is better than all the things in the world. | And the {thing} never talked again. | And they lived happily ever after.
""",
}


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
        kind, x = rng.choice([other for other in ANIMALS if other not in (animal, animal2)]), rng.choice([name for name in PET_NAMES if name != y])
    helper = rng.choice(HELPERS)
    skill, fear, trouble, cup = rng.choice(SKILLS), rng.choice(FEARS), rng.choice(TROUBLES), rng.choice(words("cup, plate, vase, bowl"))
    return {
        "x": x, "y": y, "kind": kind, "child": f"{a(trait)} {kind} named {x}",
        "he": "she" if is_girl else "he", "his": "her" if is_girl else "his", "him": "her" if is_girl else "him",
        "he2": "She" if y in GIRLS else "He", "trait": trait2, "a_trait": a(trait), "helper": helper,
        "the_helper": helper if helper in FAMILY else f"{'her' if is_girl else 'his'} {helper}",
        "animal": animal, "animal2": animal2, "a_animal": a(rng.choice([animal, f"{trait2} {animal}"])), "a_animal2": a(animal2),
        "pet": rng.choice(PET_NAMES), "thing": thing, "a_thing": a(thing), "color": color, "a_color_thing": a(f"{color} {thing}"),
        "a_new_thing": f"a new {color} {thing}", "a_color_thing2": a(f"{color2} {thing2}"), "food": food, "a_food": a(food), "a_food2": a(food2),
        "a_food_plant": a(rng.choice(words("sweet apple, red tomato, big pumpkin, juicy pear, yellow lemon"))),
        "place": place[0], "out": place[1].replace("in the", "to the").replace("at school", "to school").replace("at ", "to ").replace("near ", "to ")
        .replace("by ", "to ").replace("under ", "to ").replace("on the", "to the"),
        "shelter": rng.choice(words("under the bridge, in a small cave, under a roof, in the barn, under a big tree")), "hiding": hiding[0], "hiding2": hiding[1], "game": game[0], "game2": game[1], "weather": rng.choice(WEATHER), "what": "what",
        "skill": skill[0], "fail": skill[1], "win": skill[2], "fear": fear[0], "brave": fear[1], "result": fear[2],
        "trouble": trouble[0], "help": trouble[1], "saved": trouble[2], "cup": cup, "a_cup": a(cup),
    }  # fmt: skip


def english_story(rng: random.Random) -> str:
    """Return one story of 50 to 150 words."""
    return tell(PLOTS[rng.choice(list(PLOTS))], slots_for(rng), rng)
