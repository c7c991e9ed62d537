"""The page in a real Chromium: whatever happens to connections, replicas and tabs, its text is one generation's.

After every test nothing was asked of another host, and the page logged no error and broke no policy; only of a
replica that a test kills it may say so.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.playground.answers import FIRST_HALF, WORDS, answer
from tests.playground.browser import Page
from tests.playground.conftest import Bench, Scene
from tests.support.scripted import Gate
from tests.support.streams import Api

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}
APIS = ("chat", "responses", "messages")
KILLED = ("net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_INCOMPLETE_CHUNKED_ENCODING")


@pytest.fixture
def kills(bench: Bench) -> Iterator[None]:
    """The test kills a replica: the browser may say that it cannot be reached."""
    yield
    for replica in bench.replicas:
        if replica.returncode is not None:
            replica.start()


@pytest.fixture(autouse=True)
def _calm(request: pytest.FixtureRequest, scene: Scene) -> Iterator[None]:
    yield
    assert scene.browser.troubles(*(KILLED if "kills" in request.fixturenames else ())) == []
    own = tuple(f"{url}/" for url in scene.bench.urls)
    assert [url for _, url in scene.browser.requests() if not url.startswith(own)] == []


@pytest.mark.parametrize("api", APIS)
def test_an_answer_arrives(scene: Scene, api: Api) -> None:
    page = scene.send(api)
    page.until_state("streaming")
    assert page.text("text") == FIRST_HALF
    assert page.text("resumable") == "yes"
    assert page.text("stream").startswith("st_")
    assert page.text("first").endswith(" ms")
    page.until("Number(document.getElementById('heartbeats').textContent) > 1")
    scene.go_on()
    scene.is_whole(page)
    assert page.text("tokens") == "7 in, 40 out"
    assert page.text("resumes") == "0"
    (call,) = scene.calls
    assert (call.header("authorization"), call.header("x-api-key")) in (
        ("Bearer sk-playground", None),
        (None, "sk-playground"),
    )


@pytest.mark.parametrize("api", APIS)
def test_a_cut_goes_on_at_the_other_replica(scene: Scene, api: Api) -> None:
    page = scene.send(api)
    for resumes, replica in ((1, scene.bench.shown[1]), (2, scene.bench.shown[0])):
        page.click("cut")
        page.until(f"document.getElementById('resumes').textContent === '{resumes}'")
        assert page.text("replica") == replica
    scene.go_on()
    scene.is_whole(page)


def test_who_types_no_key_comes_back_too(scene: Scene) -> None:
    """A stream without a credential would be nobody's: the tab makes one up, and has it after a reload."""
    page = scene.send(key="")
    page.click("cut")
    page.until("document.getElementById('resumes').textContent === '1'")
    page.do("reload")
    page.until_text(FIRST_HALF)
    scene.go_on()
    scene.is_whole(page)
    assert str(scene.calls[0].header("authorization")).startswith("Bearer playground-")


def test_a_cut_goes_on_where_the_switch_says(scene: Scene) -> None:
    page = scene.send()
    page.click("switch")
    page.click("cut")
    page.until("document.getElementById('resumes').textContent === '1'")
    assert page.text("replica") == scene.bench.shown[0]
    page.do("check", "#replicas label:nth-child(2) input")
    page.click("cut")
    page.until("document.getElementById('resumes').textContent === '2'")
    assert page.text("replica") == scene.bench.shown[1]
    scene.go_on()
    scene.is_whole(page)


@pytest.mark.usefixtures("kills")
def test_the_death_of_the_replica_it_reads_from_costs_nothing(scene: Scene) -> None:
    page = scene.send()
    page.click("cut")
    page.until("document.getElementById('resumes').textContent === '1'")
    assert page.text("replica") == scene.bench.shown[1]
    scene.bench.replicas[1].kill()
    page.until("document.getElementById('resumes').textContent === '2'")
    assert page.text("replica") == scene.bench.shown[0]
    scene.go_on()
    scene.is_whole(page)


@pytest.mark.usefixtures("kills")
def test_the_death_of_the_producing_replica_is_told(scene: Scene) -> None:
    page = scene.send()
    scene.bench.replicas[0].kill()
    page.until_state("failed")
    assert page.text("replica") == scene.bench.shown[1]
    assert page.text("text") == FIRST_HALF
    assert page.text("problem").startswith("producer_lost: ")
    assert len(scene.calls) == 1


@pytest.mark.parametrize("api", APIS)
def test_a_reload_in_mid_generation(scene: Scene, api: Api) -> None:
    page = scene.send(api)
    stream = page.text("stream")
    page.do("reload")
    page.until_text(WORDS[19])
    assert page.text("stream") == stream
    assert page.js("document.getElementById('prompt').value") == "Say something."
    scene.go_on()
    scene.is_whole(page)
    first = page.text("first")
    page.do("reload")
    scene.is_whole(page)
    assert first.endswith(" ms")
    assert (page.text("first"), page.text("tokens")) == (first, "7 in, 40 out")


@pytest.mark.parametrize("api", APIS)
def test_a_second_tab_joins(scene: Scene, api: Api) -> None:
    page = scene.send(api)
    page.click("second")
    second = scene.browser.page(1)
    second.until_text(WORDS[19])
    assert second.text("text") == FIRST_HALF
    second.click("cut")
    second.until("document.getElementById('resumes').textContent === '1'")
    assert second.text("replica") == scene.bench.shown[1]
    scene.go_on()
    scene.is_whole(page)
    scene.is_whole(second)
    gets = [url for method, url in scene.browser.requests() if method == "GET" and "/streams/" in url]
    assert ["?ticket=" in url for url in gets].count(False) == 1  # the first tab's question how it ended
    assert len(gets) >= 4
    second.do("reload")
    scene.is_whole(second)


@pytest.mark.usefixtures("kills")
def test_a_second_tab_outlives_its_replica(scene: Scene) -> None:
    page = scene.send()
    page.click("second")
    second = scene.browser.page(1)
    second.until_text(WORDS[19])
    second.click("cut")
    second.until("document.getElementById('resumes').textContent === '1'")
    scene.bench.replicas[1].kill()
    second.until("document.getElementById('resumes').textContent === '2'")
    scene.go_on()
    scene.is_whole(page)
    scene.is_whole(second)


def test_who_has_only_the_address_reads_and_cannot_stop(scene: Scene) -> None:
    page = scene.send()
    page.js("void open(document.getElementById('second').href, '_blank', 'noopener')")
    second = scene.browser.page(1)
    second.until_text(WORDS[19])
    assert second.js("sessionStorage.length") == 0
    second.click("stop")
    second.until("!document.getElementById('problem').hidden")
    assert second.text("problem").startswith("404: No such stream for this credential.")
    scene.go_on()
    second.until_state("complete")
    scene.is_whole(page)
    assert {"status of 404" in line for line in scene.browser.troubles()} == {True}
    scene.browser.fresh()


@pytest.mark.parametrize("api", APIS)
def test_stop(scene: Scene, api: Api) -> None:
    page = scene.send(api)
    page.click("second")
    second = scene.browser.page(1)
    second.until_text(WORDS[19])
    page.click("stop")
    for one in (page, second):
        one.until_state("stopped")
        assert one.text("text") == FIRST_HALF
        assert one.text("problem") == ""
    (call,) = scene.calls
    assert call.ended.wait(10)
    assert call.cancelled


def test_stop_before_the_answer_begins(scene: Scene) -> None:
    scene.bench.upstream.on(scene.model, Gate(scene.model), *answer("chat", scene.model))
    page = scene.open()
    page.fill(model=scene.model)
    page.click("send")
    scene.bench.upstream.wait_reached(scene.model)
    page.until_state("connecting")
    page.press("Escape")
    page.until_state("stopped")
    (call,) = scene.calls
    assert call.ended.wait(10)
    assert call.cancelled


def test_a_stream_without_a_log_ends_with_its_connection(scene: Scene) -> None:
    page = scene.send()
    assert page.text("resumable") == "no"
    assert page.js("document.getElementById('second').hidden")
    page.click("cut")
    page.until_state("failed")
    told = "cut by hand: this stream has no log to go on from. Send the prompt again."
    assert page.text("problem") == told
    assert page.text("text") == FIRST_HALF
    page.do("reload")
    page.until_state("idle")
    assert len(scene.calls) == 1


def test_stop_of_a_stream_without_a_log(scene: Scene) -> None:
    page = scene.send()
    page.click("stop")
    page.until_state("stopped")
    assert page.text("text") == FIRST_HALF
    assert page.text("problem") == ""
    (call,) = scene.calls
    assert call.ended.wait(10)
    assert call.cancelled


@pytest.mark.usefixtures("kills")
def test_a_relay_that_is_gone_is_told(scene: Scene) -> None:
    page = scene.open()
    for replica in scene.bench.replicas:
        replica.kill()
    page.fill(model=scene.model)
    page.click("send")
    page.until_state("failed")
    assert page.text("problem").startswith("No replica can be reached")


def test_a_new_prompt_after_an_answer(scene: Scene) -> None:
    page = scene.send()
    scene.go_on()
    scene.is_whole(page)
    scene.bench.upstream.on(scene.model, *answer("chat", scene.model, ["Some", "thing", " else", "."]))
    page.click("send")
    page.until_text("Something else.")
    page.until_state("complete")
    assert page.text("text") == "Something else."
    assert len(scene.calls) == 2


def test_markup_is_shown_as_text(scene: Scene) -> None:
    words = ["<img src=x onerror=document.title='broken'>", "<script>document.title='broken'</script>", " <b>", "end"]
    page = scene.send(words=words)
    scene.go_on()
    scene.is_whole(page, "".join(words))
    assert page.js("document.querySelectorAll('#text *').length") == 0
    assert page.do("title") == "Relay playground"


@pytest.mark.parametrize(
    ("ticket", "told"),
    [
        ("&ticket=1.r.00", "403: The ticket is not one for this stream. Ask the application for a new address."),
        ("", "404: No such stream for this credential."),
    ],
)
def test_a_refusal_is_shown(scene: Scene, ticket: str, told: str) -> None:
    scene.page.open(f"{scene.bench.urls[0]}/playground#stream=st_{'A' * 22}&api=chat{ticket}")
    scene.page.until_state("failed")
    assert scene.page.text("problem").startswith(told)
    # Chromium writes a line of its own for every answer of 400 and above; there are no others.
    assert {f"status of {told[:3]}" in line for line in scene.browser.troubles()} == {True}
    scene.browser.fresh()


@pytest.mark.parametrize("named", ["stream=<img src=x>&api=chat", f"stream=st_{'A' * 22}&api=toString", "x"])
def test_an_address_that_names_no_stream_is_none(scene: Scene, named: str) -> None:
    scene.page.open(f"{scene.bench.urls[0]}/playground#{named}")
    scene.page.until_state("idle")


def test_keyboard_only(scene: Scene) -> None:
    scene.bench.upstream.on(scene.model, *answer("chat", scene.model))
    page = scene.open()
    reach(page, "model")
    page.do("keyboard.type", scene.model)
    reach(page, "key")
    page.do("keyboard.type", "sk-playground")
    reach(page, "prompt")
    assert page.js("getComputedStyle(document.activeElement).outline").endswith(" solid 2px")
    page.press("Control+Enter")
    page.until_text(WORDS[19])
    reach(page, "cut")
    page.press("Enter")
    page.until("document.getElementById('resumes').textContent === '1'")
    assert page.js("document.activeElement.id") == "cut"
    reach(page, "second")
    page.press("Enter")
    second = scene.browser.page(1)
    second.until_text(WORDS[19])
    page.do("bringToFront")
    page.press("Escape")
    page.until_state("stopped")
    second.until_state("stopped")
    assert page.js("document.activeElement.id") == "second"
    assert len(scene.calls) == 1


def test_the_focus_is_never_lost(scene: Scene) -> None:
    page = scene.open()
    page.fill(model=scene.model)
    scene.bench.upstream.on(scene.model, *answer("chat", scene.model))
    reach(page, "send")
    page.press("Enter")
    page.until_text(WORDS[19])
    assert page.js("document.activeElement.id") == "stop"
    page.press("Enter")
    page.until_state("stopped")
    assert page.js("document.activeElement.id") == "prompt"


def reach(page: Page, name: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(30):
        if page.js("document.activeElement.id") == name:
            return
        page.press("Tab")
    raise AssertionError(f"Tab does not lead to #{name}")


def test_every_field_has_a_name(scene: Scene) -> None:
    fields = "[...document.querySelectorAll('input, select, textarea')]"
    assert scene.open().js(f"{fields}.filter((field) => !field.labels[0]?.textContent.trim()).map((f) => f.id)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scene: Scene, scheme: str) -> None:
    page = scene.page
    page.do("emulateMedia", {"colorScheme": scheme})
    scene.open()
    back, text, soft, card = (page.js(f"({LUMINANCE})({what})") for what in COLOURS)
    assert (back < 0.05) if scheme == "dark" else (back > 0.8)
    assert (card < 0.05) if scheme == "dark" else (card > 0.8)
    for colour in (text, soft):  # WCAG 2.2, 1.4.3
        assert (max(colour, card) + 0.05) / (min(colour, card) + 0.05) >= 4.5


LUMINANCE = """(colour) => {
  const linear = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}"""
COLOURS = (
    "getComputedStyle(document.body).backgroundColor",
    "getComputedStyle(document.body).color",
    "getComputedStyle(document.querySelector('dt')).color",
    "getComputedStyle(document.querySelector('form')).backgroundColor",
)


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_width_needs_scrolling_sideways(scene: Scene, width: int) -> None:
    scene.page.do("setViewportSize", {"width": width, "height": 800})
    page = scene.send(words=["unbroken" * 40, "-", "half", "end"])
    assert page.js("document.documentElement.scrollWidth") == width
    scene.go_on()


def test_on_a_phone_the_answer_is_in_view_when_it_starts(scene: Scene) -> None:
    scene.page.do("setViewportSize", PHONE)
    page = scene.send()
    box = "document.getElementById('text').getBoundingClientRect()"
    assert page.js(f"{box}.top >= 0 && {box}.top + 100 < innerHeight")
    scene.go_on()
    scene.is_whole(page)


def test_on_a_phone_a_finger_meets_every_control(scene: Scene) -> None:
    scene.page.do("setViewportSize", PHONE)
    page = scene.send()
    controls = "[...document.querySelectorAll('button, select, textarea, input, a, label.line')]"
    shown = f"{controls}.filter((one) => !one.closest('[hidden]'))"
    small = "(one) => (one.closest('label.line') ?? one).getBoundingClientRect().height < 44"
    assert page.js(f"{controls}.length") > 10
    assert page.js(f"{shown}.filter({small}).map((one) => one.id || one.textContent)") == []
    scene.go_on()
    scene.is_whole(page)


def test_nothing_is_killed_where_nothing_starts_it_again(scene: Scene) -> None:
    assert scene.open().js("document.getElementById('kill').hidden") is True


def test_the_end_stays_in_sight_but_not_for_who_reads_above(scene: Scene) -> None:
    page = scene.send(words=["line\n"] * 200)
    gap = "((box) => box.scrollHeight - box.clientHeight - box.scrollTop)(document.getElementById('text'))"
    # A scroll is told with the next frame: what the page does by itself must not be told together with the reader's.
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
    page.until(f"{gap} < 2")
    assert page.js(frames)
    page.js("document.getElementById('text').scrollTop = 20")
    assert page.js(frames)
    scene.go_on()
    page.until_state("complete")
    assert page.js("document.getElementById('text').scrollTop") == 20
    assert page.js("document.getElementById('scroll').scrollTop") > 0


def test_another_host_is_out_of_reach(scene: Scene) -> None:
    page = scene.open()
    elsewhere = scene.bench.upstream.url
    before = len(scene.bench.upstream.calls)
    assert page.js(f"fetch('{elsewhere}/').then(() => 'let through', () => 'refused')") == "refused"
    assert page.js("(() => { try { document.body.innerHTML = '<b>' } catch { return 'refused' } })()") == "refused"
    assert len(scene.browser.troubles()) >= 2
    assert len(scene.bench.upstream.calls) == before
    scene.browser.fresh()
