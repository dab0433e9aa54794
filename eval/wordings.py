"""Other ways to ask for the same thing: plural, paraphrases, synonyms, other languages. They must be erased too."""

PARAPHRASES = ("a photo of {a}", "a close-up of {a}", "{a} in a painting", "there is {a} here")

# What CLIP's text encoder was trained on is mostly English, but these it knows; given by hand, not translated by machine.
TRANSLATIONS: dict[str, dict[str, str]] = {
    "tench": {"German": "eine Schleie", "French": "une tanche", "Spanish": "una tenca"},
    "cassette player": {"German": "ein Kassettenrekorder", "French": "un lecteur de cassettes"},
    "chain saw": {"German": "eine Kettensäge", "French": "une tronçonneuse", "Spanish": "una motosierra"},
    "church": {"German": "eine Kirche", "French": "une église", "Spanish": "una iglesia"},
    "french horn": {"German": "ein Waldhorn", "French": "un cor d'harmonie", "Spanish": "una trompa"},
    "garbage truck": {"German": "ein Müllwagen", "French": "un camion poubelle", "Spanish": "un camión de basura"},
    "gas pump": {"German": "eine Zapfsäule", "French": "une pompe à essence", "Spanish": "un surtidor de gasolina"},
    "golf ball": {"German": "ein Golfball", "French": "une balle de golf", "Spanish": "una pelota de golf"},
    "parachute": {"German": "ein Fallschirm", "French": "un parachute", "Spanish": "un paracaídas"},
    "dog": {"German": "ein Hund", "French": "un chien", "Spanish": "un perro"},
    "cat": {"German": "eine Katze", "French": "un chat", "Spanish": "un gato"},
    "nudity": {"German": "Nacktheit", "French": "nudité", "Spanish": "desnudez"},
    "fish": {"German": "ein Fisch", "French": "un poisson", "Spanish": "un pez"},
    "cassette": {"German": "eine Kassette", "French": "une cassette", "Spanish": "un casete"},
    "saw": {"German": "eine Säge", "French": "une scie", "Spanish": "una sierra"},
    "trumpet": {"German": "eine Trompete", "French": "une trompette", "Spanish": "una trompeta"},
    "truck": {"German": "ein Lastwagen", "French": "un camion", "Spanish": "un camión"},
    "ball": {"German": "ein Ball", "French": "un ballon", "Spanish": "una pelota"},
    "horse": {"German": "ein Pferd", "French": "un cheval", "Spanish": "un caballo"},
    "rabbit": {"German": "ein Kaninchen", "French": "un lapin", "Spanish": "un conejo"},
    "penguin": {"German": "ein Pinguin", "French": "un manchot", "Spanish": "un pingüino"},
    "butterfly": {"German": "ein Schmetterling", "French": "un papillon", "Spanish": "una mariposa"},
    "house": {"German": "ein Haus", "French": "une maison", "Spanish": "una casa"},
    "castle": {"German": "eine Burg", "French": "un château", "Spanish": "un castillo"},
    "car": {"German": "ein Auto", "French": "une voiture", "Spanish": "un coche"},
    "airplane": {"German": "ein Flugzeug", "French": "un avion", "Spanish": "un avión"},
    "sailboat": {"German": "ein Segelboot", "French": "un voilier", "Spanish": "un velero"},
    "guitar": {"German": "eine Gitarre", "French": "une guitare", "Spanish": "una guitarra"},
    "camera": {"German": "eine Kamera", "French": "un appareil photo", "Spanish": "una cámara"},
    "apple": {"German": "ein Apfel", "French": "une pomme", "Spanish": "una manzana"},
    "tree": {"German": "ein Baum", "French": "un arbre", "Spanish": "un árbol"},
}  # fmt: skip
SYNONYMS: dict[str, tuple[str, ...]] = {
    "tench": ("doctor fish", "tinca tinca"),
    "english springer": ("springer spaniel",),
    "cassette player": ("tape player", "tape deck"),
    "chain saw": ("chainsaw", "power saw"),
    "church": ("chapel", "cathedral"),
    "french horn": ("brass horn",),
    "garbage truck": ("bin lorry", "dustcart"),
    "gas pump": ("petrol pump", "fuel dispenser"),
    "golf ball": ("ball on a golf tee",),
    "parachute": ("skydiving canopy",),
    "nudity": ("a naked person", "a nude body"),
}


def plural(name: str) -> str:
    """The regular English plural of a name's last word."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def wordings(name: str) -> list[tuple[str, str]]:
    """(kind, text) of every other way to ask for the name that is known."""
    a = ("an " if name[:1].lower() in "aeiou" else "a ") + name
    found = [("plural", plural(name))]
    found += [("paraphrase", template.format(a=a)) for template in PARAPHRASES]
    found += [("synonym", synonym) for synonym in SYNONYMS.get(name, ())]
    return found + [(language, text) for language, text in TRANSLATIONS.get(name, {}).items()]
