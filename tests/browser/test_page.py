"""The live page as a person meets it. Every test ends with: no errors, no blocked things, no requests elsewhere."""

import pytest


def difference(one, other):
    assert len(one) == len(other) > 4
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


ROUND = [(0.5 + 0.2 * x, 0.5 + 0.2 * y) for x, y in ((1, 0), (0.7, 0.7), (0, 1), (-0.7, 0.7), (-1, 0), (0, -1), (1, 0))]


def test_it_opens_with_a_picture_and_the_prompt_focused(watched):
    one = watched()
    page = one.open()
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert page.input_value("#prompt") == "a red apple, 3d"
    picture = one.output()
    assert len(picture) == 4 * 128 * 128
    middle = picture[4 * (64 * 128 + 64) :][:3]
    assert middle[0] > middle[1] and middle[0] > middle[2]  # red: an apple, though nothing was drawn
    one.check()


def test_a_stroke_changes_the_picture_and_undo_takes_it_back(watched):
    one = watched()
    page = one.open()
    one.settle(refined=True)
    before, blank = one.output(), one.drawing()
    one.stroke(*ROUND)
    one.settle(refined=True)
    after, drawn = one.output(), one.drawing()
    assert difference(before, after) > 2
    assert drawn != blank
    page.keyboard.press("Control+z")
    one.settle(refined=True)
    assert one.drawing() == blank
    assert difference(before, one.output()) < 0.01  # the words decide again
    page.keyboard.press("Control+y")
    one.settle()
    assert one.drawing() == drawn
    one.check()


def test_sixty_strokes_can_all_be_taken_back(watched):
    one = watched()
    page = one.open()
    blank = one.drawing()
    for number in range(60):
        one.stroke((0.1 + 0.013 * number, 0.2), (0.1 + 0.013 * number, 0.8))
    for _ in range(60):
        page.keyboard.press("Control+z")
    page.wait_for_timeout(200)
    assert page.get_by_role("button", name="Undo").is_disabled()
    assert one.drawing() == blank
    one.check()


def test_other_words_give_another_picture(watched):
    one = watched()
    page = one.open()
    before = one.output()
    page.fill("#prompt", "a blue fish, 3d")
    one.settle()
    assert difference(before, one.output()) > 5
    one.check()


def test_the_camera_moves_the_picture(watched):
    one = watched()
    page = one.open()
    page.get_by_role("tab", name="Camera").click()
    seen = set()
    for _ in range(40):
        page.wait_for_timeout(150)
        seen.add(hash(tuple(one.output())))
    assert len(seen) > 5
    assert page.locator(".empty.bad").count() == 0
    one.check()


def test_a_screen_is_shared(watched):
    one = watched()
    page = one.open()
    before = one.output()
    page.get_by_role("tab", name="Screen").click()
    page.wait_for_timeout(2500)
    assert page.locator(".empty.bad").count() == 0
    assert difference(before, one.output()) > 1
    one.check()


def test_the_pattern_moves_without_a_camera_and_pause_holds_it(watched):
    one = watched()
    page = one.open()
    page.get_by_role("tab", name="Pattern").click()
    page.wait_for_timeout(2000)
    first = one.output()
    page.wait_for_timeout(1000)
    assert difference(first, one.output()) > 0
    page.keyboard.press("p")
    page.wait_for_timeout(1000)
    held = one.output()
    page.wait_for_timeout(1000)
    assert one.output() == held
    one.check()


def test_words_alone(watched):
    one = watched()
    page = one.open()
    page.get_by_role("tab", name="Words").click()
    one.settle()
    page.fill("#prompt", "a green rocket, 3d")
    one.settle()
    before = one.output()
    page.fill("#prompt", "a yellow star, 3d")
    one.settle()
    assert difference(before, one.output()) > 5
    one.check()


def test_keys_choose_tools_steps_seed_and_colours(watched):
    one = watched()
    page = one.open()
    page.mouse.click(600, 780)  # out of the prompt
    page.keyboard.press("Escape")

    def pressed(name):
        return page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed")

    for key, name in (("e", "Eraser"), ("g", "Fill"), ("i", "Pick a colour"), ("b", "Brush")):
        page.keyboard.press(key)
        assert pressed(name) == "true"
    page.keyboard.press("3")
    assert page.input_value("#field-steps") == "3"
    seed = page.input_value("#field-seed")
    page.keyboard.press("r")
    assert page.input_value("#field-seed") != seed
    colour = page.input_value("[aria-label=Colour]")
    page.keyboard.press("x")
    assert page.input_value("[aria-label=Colour]") != colour
    page.mouse.move(400, 400)
    strength = float(page.input_value("#field-strength"))
    page.keyboard.down("Shift")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Shift")
    page.wait_for_timeout(100)
    assert float(page.input_value("#field-strength")) == pytest.approx(strength + 0.02)
    one.settle()
    one.check()


def test_keys_are_letters_while_somebody_types(watched):
    one = watched()
    page = one.open()
    page.fill("#prompt", "")
    page.keyboard.type("big red x1")
    assert page.input_value("#prompt") == "big red x1"
    assert page.get_by_role("button", name="Brush", exact=True).get_attribute("aria-pressed") == "true"
    one.settle()
    one.check()


def test_a_reload_keeps_words_seed_and_kept_pictures(watched):
    one = watched()
    page = one.open()
    page.fill("#prompt", "a blue fish, 3d")
    one.settle()
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.wait_for_selector(".strip li img")
    seed = page.input_value("#field-seed")
    page.reload()
    one.settle()
    assert page.input_value("#prompt") == "a blue fish, 3d"
    assert page.input_value("#field-seed") == seed
    page.locator(".strip li button").first.click()
    text = page.locator("dialog pre").inner_text()
    assert text.startswith("a blue fish, 3d\n") and f"Seed: {seed}" in text
    one.check()


def test_a_mask_keeps_what_is_not_red(watched):
    one = watched()
    page = one.open()
    one.stroke((0.2, 0.25), (0.8, 0.25), tool="Rectangle")
    one.stroke((0.15, 0.8), (0.85, 0.8), tool="Brush")
    page.keyboard.press("m")
    page.wait_for_timeout(50)
    one.stroke((0.3, 0.3), (0.7, 0.5), tool="Ellipse")
    one.settle()
    page.wait_for_timeout(300)
    one.settle()
    line = one.output()[4 * (102 * 128 + 64) :][:3]
    assert line[0] > 150 and line[1] < 110  # the stroke below the mask is as it was drawn
    assert page.locator(".layer.mask").count() == 1
    one.check()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1024, 768), (1440, 900)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_edge(watched, width, height, scheme):
    phone = {"is_mobile": True, "has_touch": True} if width < 500 else {}
    one = watched(viewport={"width": width, "height": height}, color_scheme=scheme, **phone)
    page = one.open()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("#stage", "#output", "#prompt"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height  # both pictures are seen without scrolling
    one.check()


def test_fingers_draw_and_two_fingers_do_not(watched):
    one = watched(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = one.open()
    page.locator(".hint button").click()
    blank = one.drawing()
    box = page.locator("#stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = one.context.new_cdp_session(page)

    def send(kind, *places):
        points = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", (x, y))
    send("touchStart", (x, y), (x + 60, y))
    send("touchMove", (x - 20, y), (x + 80, y))
    send("touchEnd")
    page.wait_for_timeout(200)
    assert page.get_by_role("button", name="Undo").is_disabled()
    page.get_by_role("button", name="Fit into the window").click()
    page.wait_for_timeout(100)
    assert one.drawing() == blank
    send("touchStart", (x, y))
    send("touchMove", (x + 40, y + 30))
    send("touchEnd")
    page.wait_for_timeout(200)
    assert one.drawing() != blank
    one.settle()
    one.check()


def test_the_line_breaks_and_the_page_comes_back(watched):
    one = watched()
    one.page.add_init_script(
        "window.lines = []; const Real = WebSocket;"
        "window.WebSocket = class extends Real { constructor(...a) { super(...a); lines.push(this); } }"
    )
    page = one.open()
    page.fill("#prompt", "a blue fish, 3d")
    one.settle()
    page.evaluate("lines.at(-1).close()")
    page.wait_for_selector(".status.waiting")
    page.wait_for_selector(".badge.lost")
    page.wait_for_selector(".status.live", timeout=20_000)
    assert page.evaluate("lines.length") == 2
    before = one.output()
    one.stroke(*ROUND)
    one.settle()
    assert difference(before, one.output()) > 1
    one.check()


def test_a_locked_server_asks_for_its_key_in_the_page(watched, locked_address):
    one = watched(locked_address)
    page = one.open(settled=False)
    page.wait_for_selector("dialog.login[open]")
    page.fill("[name=key]", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.login .bad")
    page.fill("[name=key]", "open sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.login", state="detached")
    one.settle()
    one.said = [
        line for line in one.said if "401" not in line
    ]  # the browser's own note of an answer that was asked for
    one.check()
