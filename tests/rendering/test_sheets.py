import pytest
from PIL import Image, ImageDraw

from tunes_dagster.rendering import paper, sheets, typefaces
from tunes_dagster.rendering.sheets import Cell


def picture(color, size=(128, 128)):
    image = Image.new("RGB", size, color)
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill="white")
    return image


def near(sheet, color, tolerance=12):
    """Whether any pixel of the sheet has about this colour."""
    return any(
        all(abs(a - b) <= tolerance for a, b in zip(found, color, strict=True))
        for _, found in sheet.getcolors(maxcolors=1 << 24)
    )


def test_every_picture_is_on_the_sheet_in_its_place():
    colors = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 160, 30)]
    sheet = sheets.contact_sheet(
        [[Cell(picture(c)) for c in colors[:2]], [Cell(picture(c)) for c in colors[2:]]]
    )
    left, top, step = sheets.MARGIN, sheets.MARGIN, 256 + sheets.GAP
    offset = (sheet.width - 2 * sheets.MARGIN - (2 * 256 + sheets.GAP)) // 2
    for i, color in enumerate(colors):
        at = (left + offset + (i % 2) * step + 230, top + (i // 2) * step + 230)
        assert sheet.getpixel(at) == color


def test_small_pictures_are_enlarged_by_a_whole_factor():
    assert sheets.cell_box([picture("red")], columns=4) == (256, 256)
    assert sheets.cell_box([picture("red", (64, 64))], columns=4) == (256, 256)
    width, height = sheets.cell_box([picture("red", (1024, 768))], columns=2)
    assert max(width, height) == 384 and abs(width / height - 4 / 3) < 0.01


def test_many_columns_keep_the_sheet_within_bounds():
    sheet = sheets.contact_sheet([[Cell(picture("red", (512, 512))) for _ in range(12)]])
    assert sheet.width <= 1900


def test_icons_keep_their_pixels():
    icon = Image.new("RGB", (2, 1))
    icon.putpixel((0, 0), (255, 0, 0))
    icon.putpixel((1, 0), (0, 0, 255))
    assert {c for _, c in paper.scale_to(icon, (64, 32)).getcolors()} == {(255, 0, 0), (0, 0, 255)}


@pytest.mark.parametrize("count, columns", [(1, 1), (4, 2), (6, 3), (8, 4), (12, 4), (60, 8)])
def test_rows_are_filled_evenly(count, columns):
    rows = sheets.in_rows([Cell(None)] * count)
    assert sum(map(len, rows)) == count
    assert len(rows[-1]) > len(rows[0]) / 3
    assert abs(len(rows[0]) - columns) <= 1


def test_training_sheet_tells_verdicts_apart():
    pictures = [picture((10, 120, 220)) for _ in range(3)]
    plain = sheets.training_sheet(pictures[:1])
    assert not near(plain, paper.TONES["bad"][0])
    sheet = sheets.training_sheet(
        pictures,
        ["a", "b", "too small"],
        verdicts=["accepted", "warned", "rejected"],
        held_out=[True, False, False],
    )
    for tone in ("info", "warn", "bad"):
        assert near(sheet, paper.TONES[tone][0])


def test_training_sheet_counts_what_it_does_not_draw():
    few = sheets.training_sheet([picture("red", (32, 32))] * 4, max_pictures=2)
    assert few.height < sheets.training_sheet([picture("red", (32, 32))] * 12).height


def test_before_after_and_checkpoint_sheets_have_their_rows_and_columns():
    images = [picture("red"), picture("blue")]
    both = sheets.before_after_sheet(["one", "two"], images, images, references=images)
    assert both.height > 3 * 256 and both.width > 2 * 256
    grid = sheets.checkpoint_sheet(["one", "two"], [0, 50, 100], [[*images, None]] * 2)
    assert grid.width > 3 * 256
    assert near(grid, paper.PLACEHOLDER, 0)


def test_text_is_wrapped_and_cut_to_its_width():
    face = paper.font(13)
    lines = paper.wrap("a very long caption " * 10, face, 120, 2)
    assert len(lines) == 2 and lines[-1].endswith("…")
    assert all(paper.text_width(line, face) <= 120 for line in lines)
    assert paper.wrap("", face, 120, 2) == []
    assert paper.text_width(paper.wrap("x" * 200, face, 120, 2)[0], face) <= 120
    assert paper.clean("a\n\tb\x00  c") == "a b c"


def test_empty_sheet_is_still_a_sheet():
    assert sheets.contact_sheet([], title="Nothing yet").width >= 420


@pytest.fixture
def no_other_fonts(monkeypatch):
    monkeypatch.setattr(typefaces, "_known", [])
    monkeypatch.setattr(typefaces, "_asked", lambda character: [])
    monkeypatch.setattr(typefaces, "_files", tuple)
    typefaces.find_font.cache_clear()
    yield monkeypatch
    typefaces.find_font.cache_clear()


def boxes(text):
    """How many characters are drawn in a font that does not have them."""
    face, drawn = paper.font(20), []
    original = ImageDraw.ImageDraw.text

    def noted(self, xy, text, font=None, **more):
        drawn.append((text, font.path))
        return original(self, xy, text, font=font, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", noted)
        face.draw(Image.new("RGB", (900, 60)), (5, 5), text, paper.INK)
    assert drawn
    return sum(ord(c) not in typefaces._characters(path) for piece, path in drawn for c in piece)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Anna, \u5199\u771f\u306e 1", "CJK (3)"),
        ("\ud55c\uad6d \U0001f9e2 cap", "Hangul (2), billed cap (1)"),
        ("\U0001f468\u200d\U0001f9b2\U0001f3fd\ufe0f", "man (1)"),
        ("\ue123\u0e01\u0e49", "Thai (1), U+E123 (1)"),
        ("plain \u00fcml\u00e4ut \u2764\ufe0f", ""),
    ],
)
def test_what_no_font_has_is_written_in_words_and_told(no_other_fonts, text, told):
    assert boxes(text) == 0
    said = typefaces.unshown([text])
    assert all(part in said for part in told.split(", ")) and bool(told) == bool(said)
    plain = sheets.contact_sheet([[Cell(picture("red"), "a")]])
    assert (sheets.contact_sheet([[Cell(picture("red"), text)]]).height > plain.height) == bool(told)


def test_a_font_of_this_machine_that_has_the_character_is_used(no_other_fonts):
    stix = str(typefaces._shipped() / "STIXGeneral.ttf")
    no_other_fonts.setattr(typefaces, "_files", lambda: ("/nowhere.ttf", stix))
    assert typefaces.unshown(["\u2316"]) == "" and typefaces.find_font(0x2316) == stix
    assert boxes("a \u2316 b") == 0


def test_scripts_without_spaces_are_wrapped():
    class Even(typefaces.Face):
        def getlength(self, text):
            return 10.0 * len(text)

    assert paper.wrap("\u5199\u771f" * 7 + " ab cd", Even(14), 60, 3) == [
        "\u5199\u771f" * 3,
        "\u5199\u771f" * 3,
        "\u5199\u771f ab\u2026",
    ]
