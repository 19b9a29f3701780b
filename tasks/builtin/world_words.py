"""The words of the built-in world: opinions every domain shares, and each domain's aspects,
opinions and surroundings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """What reviews of one kind of product talk about. Adjectives have their polarity in this domain
    only."""

    name: str
    product: str  # one of it
    aspects: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    uses: tuple[str, ...]  # neutral verb phrases after "i ..."


def listed(words: str) -> tuple[str, ...]:
    """The words of `words`, in order."""
    return tuple(words.split())


# (word, grade): grade 1 is mild, 2 is strong.
GOOD: dict[str, int] = {
    **dict.fromkeys(
        listed(
            "good nice decent solid fine pleasant handy useful likable fair agreeable neat tidy"
            " worthy capable sensible charming satisfying reliable practical clever thoughtful"
            " welcome adequate sturdy dependable tasteful appealing helpful smart"
        ),
        1,
    ),
    **dict.fromkeys(
        listed(
            "great excellent superb perfect wonderful fantastic amazing outstanding brilliant"
            " lovely flawless terrific splendid marvelous stunning awesome exceptional fabulous"
            " remarkable gorgeous impressive delightful magnificent stellar first-rate top-notch"
            " unbeatable glorious exquisite phenomenal"
        ),
        2,
    ),
}
BAD: dict[str, int] = {
    **dict.fromkeys(
        listed(
            "bad poor weak cheap dull odd clumsy sloppy fussy annoying mediocre lacking flimsy"
            " careless bland awkward tiresome questionable inferior uneven shabby unhelpful"
            " forgettable dated stiff crude disappointing underwhelming careworn tacky"
        ),
        1,
    ),
    **dict.fromkeys(
        listed(
            "terrible awful horrible useless dreadful worthless pathetic atrocious miserable"
            " appalling hopeless disgusting ghastly abysmal laughable unbearable defective shameful"
            " rotten horrendous infuriating lousy unacceptable broken wretched dismal faulty"
            " hideous unusable disastrous"
        ),
        2,
    ),
}
# Whole sentences; "{p}" is the product. They contain no adjective of the lists above.
GOOD_PHRASES = (
    "i would buy this {p} again", "it works as promised", "i recommend it to everyone", "it exceeded my hopes",
    "we could not be happier", "i love this {p}", "it is worth every penny", "my family adores it", "it saved the day",
    "five stars from me", "i am glad i bought it", "it still looks new", "this {p} made me smile", "it won me over",
    "you will not regret it", "it beats all the others",
)  # fmt: skip
BAD_PHRASES = (
    "i want my money back", "it broke after two days", "i returned it at once", "stay away from this {p}", "it fell apart",
    "what a waste of money", "i regret this purchase", "it stopped working", "my family hates it", "i threw it out",
    "one star from me", "it let me down", "save your money", "i hate this {p}", "it never worked", "the seller ignored me",
)  # fmt: skip
INTENSIFIERS = {
    "very": 1.5,
    "really": 1.5,
    "extremely": 1.75,
    "truly": 1.5,
    "so": 1.5,
    "absolutely": 1.75,
}
SOFTENERS = {"somewhat": 0.6, "rather": 0.8, "fairly": 0.8, "slightly": 0.5}
NEGATIONS = ("not", "never", "hardly", "isn't", "wasn't")
FILLERS = (
    "i bought it last month", "it came in a brown box", "it arrived on a monday", "my sister has the same one",
    "i ordered the blue one", "this is my second {p}", "i read many reviews before", "it was a gift for my father",
    "the box has a label on top", "i have had it for a year", "we picked it up at the store", "there are three colors",
    "shipping took four days", "a friend told me about it", "i paid with a card", "it replaced an old {p}",
    "the manual has ten pages", "we keep it in the hall", "i wrote this after two weeks", "it is made by a company in ohio",
)  # fmt: skip
# Adjectives whose polarity only the domain decides. No other list holds them.
SHIFTING = listed(
    "hot cold loud quiet light heavy soft firm dark bright thick thin slow quick sharp smooth dry"
    " wet tight loose simple strong small large hard sweet plain rough"
)


def _domain(name: str, product: str, aspects: str, good: str, bad: str, uses: str) -> Domain:
    return Domain(name, product, *map(listed, (aspects, good, bad)), tuple(uses.split(", ")))


PUBLIC = (
    _domain("books", "book", "plot ending author prose chapter dialogue hero cover", "gripping moving witty dark quick light",
            "boring confusing predictable slow plain heavy", "read it on the train, lent it to a neighbor, read two pages a night"),
    _domain("shoes", "shoe", "sole heel laces toe stitching leather tongue arch", "comfy durable grippy light soft tight",
            "blistering squeaky slippery heavy hard loose", "walk to work every day, wore them at a wedding, run twice a week"),
    _domain("toys", "toy", "wheels puppet puzzle pieces paint figure buttons track", "fun colorful playful safe simple bright",
            "splintery dangerous babyish loud sharp small", "gave it to my nephew, put it under the tree, play with the kids"),
    _domain("lamps", "lamp", "bulb shade switch glow stand socket beam dimmer", "radiant cozy stylish bright firm soft",
            "flickering dim wobbly hot dark loose", "read beside it at night, put it on the desk, turn it on at six"),
    _domain("backpacks", "backpack", "strap zipper pocket lining buckle seam flap padding", "roomy rugged weatherproof light strong large",
            "cramped itchy leaky heavy thin small", "took it to school, flew to rome with it, carry three books"),
    _domain("kettles", "kettle", "spout lid whistle handle base cord element gauge", "speedy rustproof spotless hot quick quiet",
            "drippy rusty scalding slow cold loud", "make tea at four, fill it every morning, use it in the office"),
    _domain("chairs", "chair", "seat armrest backrest legs cushion wheelbase tilt fabric", "supportive ergonomic plush soft firm smooth",
            "creaky lopsided painful hard rough loose", "sit in it all day, put it together alone, moved it to the den"),
    _domain("watches", "watch", "dial crown hands bracelet crystal clasp hour alarm", "precise elegant classy thin heavy bright",
            "inaccurate scratched gaudy thick loose slow", "wear it to work, set it by the radio, showed it to my boss"),
    _domain("blenders", "blender", "blade jar motor pitcher gasket pulse speed smoothie", "powerful smashing creamy strong smooth sharp",
            "lumpy smelly stalling loud rough wet", "make soup on sundays, crush ice with it, wash it by hand"),
    _domain("bicycles", "bicycle", "saddle pedal chain brake gear fork tire frame", "nimble speedy sporty light quick smooth",
            "rattling shaky rusty heavy slow soft", "ride to the lake, park it outside, oil it every month"),
    _domain("pillows", "pillow", "foam filling case feathers edges corner loft memory", "fluffy breathable restful soft cold thick",
            "lumpy smelly saggy hard hot thin", "sleep on my side, wash it in june, took it to a hotel"),
    _domain("cameras", "camera", "lens flash shutter sensor zoom viewfinder tripod menu", "crisp responsive vivid sharp quick light",
            "blurry grainy laggy dark slow thick", "took pictures of birds, went to paris with it, film my children"),
    _domain("guitars", "guitar", "strings neck fret tone bridge pickup tuner body", "resonant mellow playable loud bright dark",
            "buzzing tinny warped quiet dry cold", "play in a band, practice an hour a day, hung it on the wall"),
    _domain("jackets", "jacket", "sleeve hood collar cuffs pockets hem snaps wool", "warm windproof flattering hot dry thick",
            "baggy itchy clammy cold wet thin", "wore it in the snow, hike in the fall, hung it by the door"),
)  # fmt: skip
PRIVATE = (
    _domain("coffee", "coffee",
            "roast aroma crema beans brew aftertaste espresso grind", "aromatic nutty velvety rich hot strong fresh dark",
            "bitter stale burnt watery cold thin sour dry", "grind a cup at dawn, drink it after lunch, steep it in a press"),
    _domain("laptops", "laptop",
            "keyboard touchpad screen battery fan hinge processor webcam", "snappy sleek stable portable cold quiet quick bright",
            "sluggish glitchy freezing unresponsive hot loud dark slow",
            "code on it at night, stream shows in bed, plug it into a monitor"),
    _domain("headphones", "headphone", "bass treble earcups headband cable soundstage bluetooth microphone",
            "immersive balanced punchy noiseless loud light soft smooth", "muffled muddy crackling staticky quiet heavy sweet sharp",
            "listen to jazz at home, mix podcasts, pair it with my phone"),
    _domain("tents", "tent", "poles rainfly stakes groundsheet vestibule mesh canopy guylines",
            "waterproof airy spacious stormproof dry light large firm", "leaking sagging drafty moldy wet heavy small loose",
            "camped by a river, pitch it in ten minutes, slept under the stars"),
)  # fmt: skip
DOMAINS = {domain.name: domain for domain in PUBLIC + PRIVATE}
