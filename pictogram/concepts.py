"""What `pictogram` is taught: everyday words, picture sets, colours, places, and what is held out.

A concept is an Iconify slug and the words people use for it; the first word is the one the
judge and the evaluation use. The slugs are shared by the Fluent and Noto sets.
"""

import hashlib

#: slug -> everyday names.
CONCEPTS: dict[str, tuple[str, ...]] = {
    # animals
    "dog-face": ("dog", "puppy"),
    "cat-face": ("cat", "kitten"),
    "mouse-face": ("mouse",),
    "rabbit-face": ("rabbit", "bunny"),
    "fox": ("fox",),
    "bear": ("bear",),
    "panda": ("panda",),
    "koala": ("koala",),
    "tiger-face": ("tiger",),
    "lion": ("lion",),
    "cow-face": ("cow",),
    "pig-face": ("pig",),
    "frog": ("frog",),
    "monkey-face": ("monkey",),
    "penguin": ("penguin",),
    "owl": ("owl",),
    "unicorn": ("unicorn",),
    "honeybee": ("bee",),
    "butterfly": ("butterfly",),
    "lady-beetle": ("ladybug", "ladybird"),
    "snail": ("snail",),
    "turtle": ("turtle",),
    "octopus": ("octopus",),
    "crab": ("crab",),
    "tropical-fish": ("fish",),
    "spouting-whale": ("whale",),
    "elephant": ("elephant",),
    "giraffe": ("giraffe",),
    "duck": ("duck",),
    "hatching-chick": ("chick",),
    # food
    "red-apple": ("apple", "red apple"),
    "banana": ("banana",),
    "grapes": ("grapes",),
    "strawberry": ("strawberry",),
    "watermelon": ("watermelon",),
    "tangerine": ("orange", "tangerine"),
    "lemon": ("lemon",),
    "pear": ("pear",),
    "cherries": ("cherries", "cherry"),
    "pineapple": ("pineapple",),
    "avocado": ("avocado",),
    "carrot": ("carrot",),
    "mushroom": ("mushroom",),
    "cheese-wedge": ("cheese",),
    "hamburger": ("hamburger", "burger"),
    "pizza": ("pizza",),
    "french-fries": ("fries", "french fries"),
    "doughnut": ("donut", "doughnut"),
    "cookie": ("cookie",),
    "birthday-cake": ("birthday cake", "cake"),
    "soft-ice-cream": ("ice cream",),
    "lollipop": ("lollipop",),
    "hot-beverage": ("cup of coffee", "coffee"),
    "beer-mug": ("beer",),
    # places and vehicles
    "automobile": ("car", "automobile"),
    "bus": ("bus",),
    "fire-engine": ("fire truck",),
    "bicycle": ("bicycle", "bike"),
    "locomotive": ("train",),
    "airplane": ("airplane", "plane"),
    "helicopter": ("helicopter",),
    "rocket": ("rocket",),
    "sailboat": ("sailboat", "boat"),
    "house": ("house", "home"),
    "castle": ("castle",),
    "tent": ("tent",),
    # nature
    "sun-with-face": ("sun",),
    "crescent-moon": ("moon",),
    "star": ("star",),
    "cloud": ("cloud",),
    "rainbow": ("rainbow",),
    "snowman": ("snowman",),
    "fire": ("fire", "flame"),
    "deciduous-tree": ("tree",),
    "palm-tree": ("palm tree",),
    "cactus": ("cactus",),
    "rose": ("rose",),
    "tulip": ("tulip",),
    "sunflower": ("sunflower",),
    "christmas-tree": ("christmas tree",),
    # things
    "guitar": ("guitar",),
    "trumpet": ("trumpet",),
    "drum": ("drum",),
    "soccer-ball": ("soccer ball", "football"),
    "basketball": ("basketball",),
    "balloon": ("balloon",),
    "wrapped-gift": ("gift", "present"),
    "key": ("key",),
    "locked": ("lock", "padlock"),
    "light-bulb": ("light bulb",),
    "umbrella": ("umbrella",),
    "crown": ("crown",),
    "top-hat": ("hat", "top hat"),
    "camera": ("camera",),
    "alarm-clock": ("clock", "alarm clock"),
    "hammer": ("hammer",),
    "anchor": ("anchor",),
    "bell": ("bell",),
    "red-heart": ("heart", "red heart"),
    "trophy": ("trophy",),
    "robot": ("robot",),
    "ghost": ("ghost",),
    "alien": ("alien",),
    "teddy-bear": ("teddy bear",),
    "jack-o-lantern": ("pumpkin",),
    "gem-stone": ("diamond", "gem"),
    "pencil": ("pencil",),
    "books": ("books",),
    "grinning-face": ("smiley", "smiling face"),
    "smiling-face-with-sunglasses": ("cool face", "face with sunglasses"),
}

#: The words the CPU recipe spends most of its time on: what a person asks for first. The card claims these alone.
EVERYDAY = frozenset({
    "dog-face", "cat-face", "rabbit-face", "bear", "panda", "lion", "pig-face", "frog", "penguin", "honeybee",
    "butterfly", "tropical-fish", "elephant", "red-apple", "banana", "grapes", "strawberry", "watermelon",
    "tangerine", "carrot", "mushroom", "hamburger", "pizza", "doughnut", "birthday-cake", "soft-ice-cream",
    "automobile", "bicycle", "airplane", "rocket", "sailboat", "house", "sun-with-face", "crescent-moon", "star",
    "cloud", "rainbow", "snowman", "fire", "deciduous-tree", "rose", "sunflower", "guitar", "soccer-ball",
    "balloon", "wrapped-gift", "key", "crown", "top-hat", "alarm-clock", "red-heart", "robot", "ghost",
    "jack-o-lantern", "grinning-face",
})  # fmt: skip

#: style word -> npm package of the picture set.
STYLES = {
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "glossy": "@iconify-json/fluent-emoji@1.2.7",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "cartoon": "@iconify-json/noto@1.2.9",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "simple": "@iconify-json/fxemoji@1.2.2",
}
TRAIN_STYLES = ("3d", "glossy", "flat", "cartoon")
#: Never seen by the teacher, the student or the judge: the style of the "universal accelerator" test.
EXTRA_STYLE = "blob"
#: Never seen by anybody: an artist the judge is measured on.
CEILING_STYLE = "simple"

#: background name -> RGB.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "grey": (150, 150, 155),
    "red": (214, 45, 50),
    "orange": (245, 140, 40),
    "yellow": (250, 214, 60),
    "green": (70, 170, 80),
    "blue": (55, 110, 220),
    "purple": (135, 75, 190),
    "pink": (245, 150, 185),
    "brown": (130, 85, 55),
}
#: painted place -> its phrase in a caption.
PLACES = {
    "meadow": "in a meadow",
    "night": "at night",
    "beach": "on a beach",
    "snow": "in the snow",
    "sunset": "at sunset",
    "sea": "under the sea",
    "desert": "in the desert",
    "table": "on a wooden table",
}


def share(*words: str) -> float:
    """A number in [0, 1) fixed by the words: the same on every machine and in every run."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def style_held_out(slug: str, style: str) -> bool:
    """Every eighth concept is kept out of training in one of the training styles."""
    position = list(CONCEPTS).index(slug)
    return position % 8 == 5 and style == TRAIN_STYLES[(position // 8) % len(TRAIN_STYLES)]


def background_held_out(slug: str, background: str) -> bool:
    """5 % of the (concept, background) pairs; white is never held out."""
    return background != "white" and share("background", slug, background) < 0.05
