"""Texts that tokenizers differ on: case, accents, emoji, scripts, control characters, long words, special tokens."""

import random


def odd_texts(start, end, count):
    """`count` texts; `start` and `end` are special tokens, which are found in texts too."""
    fixed = [
        "", " ", "a photo of sks dog", "A PHOTO of SkS Dog", "a photo of sks dog!", "wow!!! great!", "!", "!!", "a!b",
        "it's we're I'm they'll you'd I've don't 'S 'LL ''s", "rock'n'roll", "café crème", "cafe\u0301", "Ångström Å",
        "naïve façade", "ＦＵＬＬＷＩＤＴＨ", "ﬁne ﬂuﬀ", "İstanbul ıstanbul", "STRASSE ẞ ß", "ΣΊΣΥΦΟΣ ς", "ǅ ǆ",
        "🐶", "a 🐶🐕‍🦺 dog", "👩‍👩‍👧‍👦 family", "🇯🇵🇫🇷", "❤️ ♥ ☺", "👍🏽", "日本語のテキスト", "一只狗的照片", "개 사진",
        "สุนัข", "हिन्दी पाठ", "العربية نص", "שָׁלוֹם עולם", "مرحبا world שלום", "\u202eright to left\u202c", "Привет, мир",
        "1234567890", "3.14159", "v2.1-768", "१२३ ٣٤٥ ½ ² Ⅷ", "a\tb\nc\r\nd", "  many   spaces  ", "nbsp\u00a0here",
        "\u3000wide space", "zero\u200bwidth\u200djoiner", "\ufeffbom", "null\x00byte", "\x01\x02\x1b[31m", "\x85next",
        start, end, f"{start}a{end}", f"a photo {end} of a dog", "<|STARTOFTEXT|> loud", "<|EndOfText|>", f"x{start}y",
        "<|startoftext|", "|endoftext|>", "<|pad|>", "(masterpiece:1.2), [ugly], {a|b}", "a_b-c/d\\e", "email@example.com",
        "https://example.com/?q=1&r=2#x", "C++ & C# <b>html</b> &amp; &#39;", "$5 €10 £20 ¥30 %", "\"quoted\" ‘curly’ “double”",
        "… — – ·", "supercalifragilisticexpialidocious", "pneumonoultramicroscopicsilicovolcanoconiosis", "x" * 300,
        "dog " * 200, "a photo of a dog, " * 30, "🐶" * 100, "犬" * 200, "word " * 74 + "end", "word " * 75, "word " * 76,
        "\ud7ff", "\U0010ffff", "\ue000 private", "a\u0300\u0301\u0302", "q\u0323\u0307", "각 각", "K Å Ω",
    ]
    pieces = [
        "dog", "Photo", "SKS", "é", "e\u0301", "ß", "İ", "🐶", "👩‍🚀", "犬", "の", "עב", "عر", "'s", "'RE", "!", "!!", ",", "…",
        "12", "٣", "\t", "\n", "\u00a0", "\u200b", "\x07", start, end, "<|", "|>", "ﬃ", "Ｚ", "_", "-", "x" * 20, "ing", "The",
    ]
    draw = random.Random(0)
    drawn = ["".join(draw.choice(pieces) + draw.choice(["", " ", " "]) for _ in range(draw.randint(1, 60)))
             for _ in range(count - len(fixed))]
    return fixed + drawn
