"""The class noun of a prompt, as a person finds it."""

import pytest

from db3d_nerfstudio.words import parse_subject

# google/dreambooth, dataset/prompts_and_classes.txt.
PLACES = [
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
]
THINGS = [
    *PLACES,
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
]
ANIMALS = [
    *PLACES,
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
]
BEFORE = ["red", "purple", "shiny", "wet", "cube shaped"]
NOUNS = [
    *("backpack", "stuffed animal", "bowl", "can", "candle", "cat", "clock", "sneaker", "dog", "boot", "toy"),
    *("glasses", "cartoon", "teapot", "vase"),
]


@pytest.mark.parametrize("noun", NOUNS)
def test_the_prompts_of_the_dreambooth_data_set(noun: str) -> None:
    prompts = [f"a sks {noun} {rest}" for rest in {*THINGS, *ANIMALS}] + [f"a {word} sks {noun}" for word in BEFORE]
    assert {parse_subject(prompt).class_noun for prompt in prompts} == {noun}


@pytest.mark.parametrize(
    ("prompt", "noun"),
    [
        ("a photo of a sks car parked in a street", "car"),
        ("a sks vase filled with flowers", "vase"),
        ("a sks dog covered in mud", "dog"),
        ("a sks mug full of coffee", "mug"),
        ("a sks dog looking left", "dog"),
        ("a sks cat eats pizza", "cat"),
        ("a sks robot vacuums the floor", "robot"),
        ("a sks dog 4k hdr highly detailed", "dog"),
        ("sks dog, high quality, best quality", "dog"),
        ("a sks dog high resolution photo", "dog"),
        ("a sks wooden high chair", "wooden high chair"),
        ("sks's dog", "dog"),
        ("a photo of 'sks' dog", "dog"),
        ("a photo of a sks dog's head", "dog"),
        ("a photo of a sks dog\N{RIGHT SINGLE QUOTATION MARK}s head", "dog"),
        ("a photo of a sks dog's bowl", "dog's bowl"),
        ("a photo of a sks dog\N{RIGHT SINGLE QUOTATION MARK}s bowl", "dog's bowl"),
        ("a sks teddy bear with a bow", "teddy bear"),
        ("sks style", "style"),
        ("a cat in the sks style", "style"),
        ("a sks running shoe on a table", "running shoe"),
        ("a sks sewing machine", "sewing machine"),
        ("a sks rocking horse standing outside", "rocking horse"),
        ("a sks earring lying on velvet", "earring"),
        ("a sks stuffed animal seated on a chair", "stuffed animal"),
        ("a sks cube shaped box", "cube shaped box"),
        ("a sks cute little dog", "dog"),
        ("a sks red backpack", "backpack"),
        ("a sks red panda", "red panda"),
        ("a sks golden retriever puppy asleep", "golden retriever puppy"),
        ("sks, a corgi, sitting", "corgi"),
        ("sks the dog at night", "dog"),
        ("(sks dog:1.3), masterpiece", "dog"),
        ("a sks butterfly", "butterfly"),
        ("a sks dog happily running", "dog"),
        ("a sks t-shirt hanging on a wall", "t-shirt"),
        ("a sks rubber duck swims in a bath", "rubber duck"),
        ("a sks statue of liberty", "statue"),
        ("a sks dog that looks sad", "dog"),
        ("a DSLR photo of a sks soda can next to a plate", "soda can"),
        ("a sks dog\nin the snow", "dog"),
        ("a sks action figure made of wood", "action figure"),
        ("a sks sunglasses", "sunglasses"),
        ("a sks picture frame", "picture frame"),
        ("a sks dog portrait photography", "dog"),
        ("a photo of a \N{LEFT DOUBLE QUOTATION MARK}sks\N{RIGHT DOUBLE QUOTATION MARK} dog", "dog"),
        ("a photo of a sks dog dog", "dog"),
        (
            "ein Foto von sks H\N{LATIN SMALL LETTER U WITH DIAERESIS}ndchen",
            "H\N{LATIN SMALL LETTER U WITH DIAERESIS}ndchen",
        ),
    ],
)
def test_a_noun_ends_where_a_person_ends_it(prompt: str, noun: str) -> None:
    assert parse_subject(prompt).class_noun == noun


@pytest.mark.parametrize("identifier", ["[V]", "<sks>", "ohwx", "sks-1"])
def test_any_identifier(identifier: str) -> None:
    subject = parse_subject(f"a photo of a {identifier} backpack floating on water", identifier)
    assert (subject.identifier, subject.class_noun) == (identifier, "backpack")


@pytest.mark.parametrize("rest", ["running on a road", "sleeping", "wearing a hat", "with a cat", ", 4k", "'s", "- 4k"])
def test_what_is_no_noun_is_none(rest: str) -> None:
    with pytest.raises(ValueError, match="No class noun follows"):
        parse_subject(f"a photo of a sks {rest}")
