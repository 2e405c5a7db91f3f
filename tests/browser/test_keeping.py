"""Pictures and strokes into the page and out of it, layers, and when it paints."""

from tests.browser.test_page import ROUND, difference


def test_a_picture_that_is_chosen_becomes_the_drawing(watched, tmp_path):
    from PIL import Image

    Image.new("RGB", (300, 200), (20, 160, 60)).save(tmp_path / "green.png")
    one = watched()
    page = one.open()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="A picture as a layer").click()
    chooser.value.set_files(tmp_path / "green.png")
    page.wait_for_timeout(300)
    one.drawing()
    pixels = one.pixels("#stage")
    middle = len(pixels) // 8 * 4 + 2 * page.evaluate("document.querySelector('#stage').width") // 4 * 4
    assert pixels[middle : middle + 3] == [20, 160, 60]
    one.settle()
    one.check()


def test_finishing_gives_a_larger_picture_with_its_settings(watched):
    one = watched()
    page = one.open()
    one.stroke(*ROUND)
    one.settle()
    page.get_by_role("button", name="Finish").click()
    page.wait_for_selector("dialog.opened[open] img", timeout=60_000)
    width = page.evaluate(
        "async () => { const i = document.querySelector('dialog img'); await i.decode(); return i.naturalWidth }"
    )
    assert width == 256
    assert "Steps: 8" in page.locator("dialog pre").inner_text()
    one.check()


def test_layers_are_hidden_and_ordered(watched):
    one = watched()
    page = one.open()
    one.stroke(*ROUND)
    alone = one.drawing()
    page.get_by_role("button", name="New layer").click()
    assert page.locator(".layer").count() == 2
    one.stroke((0.1, 0.1), (0.9, 0.9))
    both = one.drawing()
    assert both != alone
    page.get_by_role("button", name="Hide Layer 2").click()
    assert one.drawing() == alone
    page.get_by_role("button", name="Show Layer 2").click()
    page.get_by_role("button", name="Remove the layer").click()
    assert one.drawing() == alone
    page.keyboard.press("Control+z")
    assert one.drawing() == both
    one.settle()
    one.check()


def test_holding_a_key_compares_with_the_input_and_with_a_pinned_picture(watched):
    one = watched()
    page = one.open()
    page.keyboard.press("Escape")
    page.keyboard.down("c")
    page.wait_for_selector(".comparison canvas")
    page.keyboard.up("c")
    page.wait_for_selector(".comparison", state="detached")
    page.keyboard.press("s")
    page.locator(".strip li button").first.click()
    page.get_by_role("button", name="Pin").click()
    page.wait_for_selector("dialog[open]", state="detached")  # keys are the dialog's until it is closed
    page.keyboard.down("c")
    page.wait_for_selector(".comparison img")
    page.keyboard.up("c")
    one.check()


def test_a_film_is_recorded_and_played(watched, tmp_path):
    one = watched()
    page = one.open()
    page.get_by_role("tab", name="Pattern").click()
    page.get_by_role("button", name="Record a film").click()
    page.wait_for_selector(".badge.rec")
    page.wait_for_timeout(2500)
    with page.expect_download() as download:
        page.get_by_role("button", name="End the recording").click()
    film = download.value.path().read_bytes()
    assert download.value.suggested_filename.endswith((".webm", ".mp4")) and len(film) > 2000
    assert film[:4] == b"\x1a\x45\xdf\xa3" or film[4:8] == b"ftyp"
    (tmp_path / "film.webm").write_bytes(film)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("tab", name="Video").click()
    chooser.value.set_files(tmp_path / "film.webm")
    seen = set()
    for _ in range(10):
        page.wait_for_timeout(300)
        seen.add(hash(tuple(one.output())))
    assert len(seen) > 2 and page.locator(".empty.bad").count() == 0
    one.check()


def test_a_part_of_a_moving_input_is_chosen(watched):
    one = watched()
    page = one.open()
    page.get_by_role("tab", name="Pattern").click()
    page.wait_for_timeout(1000)
    page.keyboard.press("p")
    page.wait_for_timeout(700)
    box = page.locator("#stage").bounding_box()
    whole = one.output()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4, steps=4)
    page.mouse.up()
    page.keyboard.press("p")
    page.wait_for_timeout(1500)
    corner = one.output()
    assert corner != whole
    one.check()


def test_a_lora_is_added_weighed_and_taken_away(watched):
    one = watched()
    page = one.open()
    one.settle(refined=True)
    before = one.output()
    page.get_by_label("Add a LoRA").select_option(index=1)
    weight = page.locator(".chip input")
    weight.evaluate("(e) => { e.value = '0.5'; e.dispatchEvent(new Event('input', { bubbles: true })) }")
    one.settle(refined=True)
    assert difference(before, one.output()) > 0.5  # the model's own LoRA, which is what makes few steps enough, at half
    page.locator(".chip button").click()
    one.settle(refined=True)
    assert one.output() == before
    one.check()


def test_a_value_that_the_server_refuses_goes_back(watched):
    one = watched()
    page = one.open()
    one.stroke(*ROUND)
    one.settle()
    strength = page.input_value("#field-strength")
    page.get_by_label("Strength, as a number").fill("0.01")
    page.keyboard.press("Enter")
    page.wait_for_selector(".notice.bad")
    assert page.input_value("#field-strength") == strength
    one.settle()
    one.check()


def test_at_the_end_of_a_stroke_means_not_before(watched):
    one = watched()
    page = one.open()
    page.get_by_role("radio", name="Stroke").click()
    one.settle(refined=True)
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    before = one.output()
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 300, steps=10)
    page.wait_for_timeout(1000)
    assert one.output() == before
    page.mouse.up()
    one.settle()
    assert one.output() != before
    one.check()


def test_a_hidden_tab_paints_nothing(watched):
    one = watched()
    page = one.open()
    page.get_by_role("tab", name="Pattern").click()
    page.wait_for_timeout(1500)
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => true, configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.wait_for_timeout(800)
    before = one.output()
    page.wait_for_timeout(800)
    assert one.output() == before
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1500)
    assert one.output() != before
    one.check()


def test_settings_are_copied_in_four_forms(watched):
    one = watched()
    page = one.open()
    wanted = {"Settings (infotext)": "Steps: ", "curl command": "/sdapi/v1/txt2img", "Python program": "fewstep.load()"}
    for entry, part in {**wanted, "Address of this page": "#prompt=a+red+apple"}.items():
        page.locator(".menu summary").first.click()
        page.get_by_role("button", name=entry).click()
        page.wait_for_selector(".notice")
        page.wait_for_function(f"async () => (await navigator.clipboard.readText()).includes({part!r})")
    one.check()


def test_strokes_that_were_saved_are_drawn_again(watched, tmp_path):
    one = watched()
    page = one.open()
    one.stroke(*ROUND)
    page.locator(".menu summary").nth(1).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Strokes").click()
    download.value.save_as(tmp_path / "strokes.json")
    page.wait_for_timeout(100)
    drawn = one.drawing()
    page.get_by_role("button", name="Clear everything").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="A picture as a layer").click()
    chooser.value.set_files(tmp_path / "strokes.json")
    page.wait_for_timeout(200)
    assert one.drawing() == drawn
    one.settle()
    one.check()
