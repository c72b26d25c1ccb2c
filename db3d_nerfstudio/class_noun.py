"""The class noun in a prompt: the noun phrase after the identifier, without the rest of the sentence.

Found by rules of English: a noun phrase lasts until a function word, a verb, a participle or a tag of quality.
"""

from __future__ import annotations

import re

_DETERMINERS = frozenset("a an any her his its many my our several some that the their this three two your".split())
_FUNCTION_WORDS = _DETERMINERS | frozenset(
    "about above across after against along amid among and are around as at atop be been before behind being "
    "below beneath beside besides between beyond but by during for from had has have if in inside into is it's "
    "like made near nearby not of on onto or over seen shown since than that's then through throughout to "
    "toward towards under underneath until upon via viewed was were when where which while who whose with "
    "within without".split()
)
"""Words that begin the rest wherever they stand."""
_REST = frozenset(
    "alone artstation asleep ate awake away bokeh caught cgi cinematic close-up closeup downtown dramatic "
    "drank drove dslr epic extremely facing fell flew fought hd hdr held highly hung hyperrealistic indoors "
    "intricate isolated kept laid lay lit lost masterpiece next octane off only out outdoors outside overhead "
    "photorealistic ran rode sang sat shot sideways slept spun stood swam swung taken together took trending "
    "uhd ultra underwater unreal up upright upside very vivid wore worn woven".split()
)
"""Words that begin the rest after a noun, and may stand before one."""
_REST_OR_NOUN = frozenset(
    "aesthetic back background best digital down flat full high illustration image left light lighting low "
    "macro open photo photograph photography picture portrait professional quality raw realistic render "
    "rendering resolution right sharp studio style top view wallpaper".split()
)
"""Words that do so at the end or in a row of such: "high quality", but not "high chair"."""
_VERBS = (
    "appear bark bathe blink bounce buy carry celebrate chase chew climb come contain cook crawl cross cry "
    "dance dig drink eat enjoy explore fall fight float fly follow give glow go grow hang have hide hold hop "
    "hunt jump kick kneel laugh lay lean leap lick lie lift listen live look lounge make march meditate meet "
    "melt move nap perch play pose pull push raise reach read relax rest ride roam roar run sing sit sleep "
    "smell smile sniff snore soar speak splash sprint stand stare stay stretch surf swim take talk throw "
    "travel use visit wade wait walk wear write yawn".split()
)
_NOUNS_IN_ING = frozenset(
    "awning being building ceiling clothing darling drawing duckling dumpling earring fledgling gosling "
    "herring king lightning lodging offspring painting piercing pudding railing ring sapling seedling shilling "
    "sibling sling spring starling sting string stuffing swing thing topping viking wedding wing wiring "
    "yearling".split()
)
_NOUNS_IN_ED = frozenset(
    "bed biped bred breed feed flatbed moped quadruped red reed seed shed sled steed thoroughbred watershed "
    "weed".split()
)
_NOUNS_IN_LY = frozenset(
    "ally anomaly assembly barfly belly bully butterfly cuddly curly damselfly dolly dragonfly family firefly "
    "fly friendly holly housefly italy jelly lily lovely monopoly panoply ply silly smelly supply ugly woolly".split()
)
_PARTS = frozenset(
    "back beak body ear ears eye eyes face feet foot fur hand hands head horn horns leg legs mouth muzzle neck "
    "nose paw paws portrait snout tail wing wings".split()
)
"""Parts that stand for the whole subject: a photo of a dog's head is about the dog."""
_COLOURS = frozenset(
    "beige black blue brown colorful colourful golden gray green grey orange pink purple red silver turquoise "
    "violet white yellow".split()
)
_DESCRIPTIONS = _COLOURS | frozenset(
    "adorable amazing ancient beautiful big bright broken chubby clean cool cute dark dirty elegant fancy fat "
    "fluffy friendly furry giant gigantic gorgeous handsome huge large little lovely new nice old pretty rusty "
    "shiny silly small smiling spotted striped tall tiny ugly wet young".split()
)
"""What kind of thing the subject is does not depend on these."""
_COLOURED_KINDS = frozenset(
    "bear bird currant deer dwarf eagle eye fox gate giant goose grouse jay kite monkey mullet owl panda "
    "pepper retriever rhino robin shark snapper squirrel swan tea whale widow wine wolf wolverine".split()
)
"""Kinds of which a colour is part of the name."""


def find_class_noun(rest: str) -> str:
    """The class noun at the beginning of what follows an identifier; empty if there is none."""
    rest = rest.translate({ord(mark): "'" for mark in "\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}"})
    rest = re.sub(
        r"^('s\b|[\s\"'\]>)}*\u201c\u201d\u2018\u00ab\u00bb])+", " ", rest
    )  # "sks's dog", "'sks' dog", "<sks> dog".
    rest = re.sub(r"^\s*,?\s*(an?|the)\s+", "", rest, flags=re.IGNORECASE)  # "sks, a corgi", "sks the dog".
    words = re.split(r"[^\w\s'-]|(?:^|\s)-+\s", rest)[0].split()
    noun = words[: next((i for i in range(len(words)) if _ends_noun(words, i)), len(words))]
    if len(noun) > 1 and len(noun) < len(words) and _is(words[len(noun)], _DETERMINERS) and noun[-1].endswith("s"):
        noun.pop()  # A verb: "cat eats a pizza".
    noun = _owner(noun)
    noun = [word for i, word in enumerate(noun) if i == 0 or word != noun[i - 1]]  # "dog dog".
    while len(noun) > 1 and _is(noun[0], _DESCRIPTIONS):
        if _is(noun[0], _COLOURS) and _is(noun[1], _COLOURED_KINDS):
            break
        noun = noun[1:]
    return " ".join(noun).strip("'-")


def _is(word: str, words: frozenset[str]) -> bool:
    return word.lower() in words


def _ends_noun(words: list[str], i: int) -> bool:
    """Whether the noun phrase is over before the word i."""
    word = words[i].lower()
    last = i + 1 == len(words) or _is(words[i + 1], _FUNCTION_WORDS)
    if word in _FUNCTION_WORDS:
        return True
    if i == 0:  # "running shoe" and "stuffed animal", but not "running on a road".
        return last and word.endswith("ing") and word not in _NOUNS_IN_ING
    if word in _REST or word in _THIRD_PERSON or word[0].isdigit():
        return True
    if word in _REST_OR_NOUN:
        return last or _is(words[i + 1], _REST | _REST_OR_NOUN)
    if word.endswith("ing"):
        return word not in _NOUNS_IN_ING
    if word.endswith("ed") and word not in _NOUNS_IN_ED:
        return last  # "car parked in a street", but not "cube shaped box".
    return word.endswith("ly") and word not in _NOUNS_IN_LY


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


_THIRD_PERSON = frozenset(map(_third_person, _VERBS)) | {"has"}


def _owner(noun: list[str]) -> list[str]:
    """The owner, where only a part of it is named: "dog's head" is a dog; "dog's bowl" is a bowl of a kind."""
    for i, word in enumerate(noun[:-1]):
        if word.lower().endswith("'s") and _is(noun[-1], _PARTS):
            return [*noun[:i], word[:-2]]
    return noun
