"""The routes of the studio: what each page shows, and what each form does.

Handlers run in threads, so that a page that reads many files does not stop the others. A form answers with
a redirect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from casam_core.config.library import library_names, resolve_scenario
from casam_core.errors import CasamError, RunInputError
from scenarios.ask import form
from scenarios.engines import Engine
from scenarios.report.reading import read_all, read_run
from scenarios.studio import explained, gallery, live_page, prompting, run_pages
from scenarios.studio.access import REPORT_POLICY
from scenarios.studio.shelf import NotFoundError, Shelf
from scenarios.studio.started import Started, Starter

MOST_FORM_BYTES = 64 * 1024
MOST_FIELDS = 200


@dataclass
class Studio:
    """What the pages share. desk: the open images of click-to-prompt. questions: about runs."""

    shelf: Shelf
    starter: Starter
    desk: prompting.Desk = field(default_factory=prompting.Desk)
    questions: form.Questions = field(default_factory=form.Questions)


@dataclass(frozen=True)
class Asked:
    """One request. form: the first value of each field of a query or form; lists: all of them."""

    studio: Studio
    form: Mapping[str, str]
    lists: Mapping[str, list[str]]
    body: bytes = b""
    part: bool = False

    def get(self, name: str) -> str:
        """A field, "" if it is not there."""
        return self.form.get(name, "")


Handler = Callable[[Asked], Response]


def application(studio: Studio) -> Starlette:
    """All routes. They trust that `access.Guarded` stands in front of them."""
    show, do = ["GET"], ["POST"]
    routes = [
        Route("/", handled(studio, home), methods=show),
        Route("/start", handled(studio, start), methods=do),
        Route("/run", handled(studio, run_page), methods=show),
        Route("/run/live", handled(studio, live), methods=show),
        Route("/run/stop", handled(studio, stop), methods=do),
        Route("/run/resume", handled(studio, resume), methods=do),
        Route("/ask", handled(studio, ask_page), methods=show),
        Route("/ask/live", handled(studio, ask_live), methods=show),
        Route("/ask/start", handled(studio, ask_start), methods=do),
        Route("/report", handled(studio, report), methods=show),
        Route("/compare", handled(studio, compare), methods=show),
        Route("/bank", handled(studio, bank), methods=show),
        Route("/audit", handled(studio, audit), methods=show),
        Route("/policy", handled(studio, policy), methods=show),
        Route("/policy/words", handled(studio, policy), methods=do),
        Route("/gallery", handled(studio, gallery_page), methods=show),
        Route("/gallery/panel", handled(studio, gallery_panel), methods=show),
        Route("/try", handled(studio, try_page), methods=show),
        Route("/try/open", handled(studio, try_open), methods=do),
        Route("/try/upload", handled(studio, try_upload, most=prompting.LARGEST_UPLOAD), methods=do),
        Route("/try/segment", handled(studio, try_segment), methods=do),
        Route("/try/image", handled(studio, try_image), methods=show),
        Route("/try/mask", handled(studio, try_mask), methods=show),
        Route("/static/{name}", static, methods=show),
    ]
    return Starlette(routes=routes, exception_handlers={404: nothing_here, 405: nothing_here})


def handled(
    studio: Studio, handler: Handler, most: int = MOST_FORM_BYTES
) -> Callable[[Request], Awaitable[Response]]:
    """The handler in a thread, with the request's fields. A CasamError becomes a page that says it."""

    async def endpoint(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                return page("fault.html", 413, text=f"expected at most {most:,} bytes, found more")
        form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        text = request.url.query + ("&" + body.decode("utf-8", "replace") if form else "")
        try:
            lists = parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            return page("fault.html", 413, text=f"expected at most {MOST_FIELDS} fields, found more")
        part = request.headers.get("x-part") == "1"
        asked = Asked(studio, {name: found[0] for name, found in lists.items()}, lists, bytes(body), part)
        try:
            return await run_in_threadpool(handler, asked)
        except NotFoundError as fault:
            return refused(asked, fault, 404)
        except CasamError as fault:
            return refused(asked, fault, 400)

    return endpoint


def refused(asked: Asked, fault: CasamError, status: int) -> Response:
    """The fault as a page, or as a line for a script."""
    if asked.part:
        return HTMLResponse(
            environment().get_template("parts/fault_part.html").render(text=str(fault)), status
        )
    return page("fault.html", status, text=str(fault))


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The studio's templates, and the report's blocks; all text is escaped."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("scenarios.studio"), jinja2.PackageLoader("scenarios.report")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(template: str, status: int = 200, **facts: Any) -> Response:
    """A page, or a part of one."""
    return HTMLResponse(environment().get_template(template).render(link=run_pages.link, **facts), status)


def go(address: str) -> Response:
    """To another page after a form."""
    return RedirectResponse(address, 303)


STATIC = {"studio.css": "text/css", "studio.js": "text/javascript", "icon.svg": "image/svg+xml"}


async def static(request: Request) -> Response:
    """The style sheet (the report's, then the studio's own) and the script."""
    name = request.path_params["name"]
    if name not in STATIC:
        return await nothing_here(request, Exception())
    text = files("scenarios.studio").joinpath("static", name).read_text(encoding="utf-8")
    if name.endswith(".css"):
        text = environment().get_template("style.css").render() + text
    return Response(text, media_type=STATIC[name])


async def nothing_here(request: Request, error: Exception) -> Response:
    """404, without the exception's text."""
    return PlainTextResponse("There is no such page.\n", 404)


def home(asked: Asked) -> Response:
    """The runs, and what can be started."""
    shelf, starter = asked.studio.shelf, asked.studio.starter
    runs = shelf.runs()
    known = {run.path for run in runs}
    return page(
        "home.html",
        roots=[str(root) for root in shelf.roots],
        runs=runs,
        table=run_pages.runs_table(runs, starter) if runs else None,
        studies=shelf.studies(),
        beginning=[(shelf.at(one.folder), one) for one in starter.all() if one.folder not in known],
        # The one to begin with comes first.
        scenarios=[resolve_scenario(n) for n in sorted(library_names(), key=lambda n: n != "quickstart")],
        own=shelf.scenarios(),
        into=str(starter.folder or ""),
    )


def start(asked: Asked) -> Response:
    """Start a scenario."""
    shelf, name = asked.studio.shelf, asked.get("scenario")
    scenario = str(shelf.find(name.removeprefix("file:"))) if name.startswith("file:") else name
    if not name.startswith("file:") and name not in library_names():
        raise RunInputError(f"expected a scenario of the list, found {name[:80]!r}")
    changes = [line.strip() for line in asked.get("changes").splitlines() if line.strip()]
    engine = Engine.simulation if asked.get("engine") == "simulation" else Engine.inprocess
    root = shelf.find(asked.get("data_root")) if asked.get("data_root") else None
    started = asked.studio.starter.start(scenario, changes, engine, asked.get("name").strip(), root)
    return go(run_pages.link("/run", shelf.at(started.folder)))


def run_page(asked: Asked) -> Response:
    """A run: live while it works, then its result."""
    studio, at = asked.studio, asked.get("at")
    started = started_at(studio, at)
    try:
        run = studio.shelf.run(at)
    except NotFoundError:
        if started is None:
            raise
        return page("beginning.html", started=started, at=at)
    started = studio.starter.of(run.path)
    state, sentence, blocks = live_page.live_blocks(run, started)
    sections = run_pages.result_sections(read_run(run.path, run.name)) if run.finished else []
    return page(
        "run.html",
        run=run,
        state=state,
        sentence=sentence,
        blocks_of=blocks,
        sections=sections,
        ours=started is not None and started.working,
        has_pictures=any(run.path.glob(f"institutions/*/private/overlays/{gallery.LIST}")),
    )


def started_at(studio: Studio, at: str) -> Started | None:
    """The process of this studio that works, or worked last, on the run of this name, also before its
    folder exists.
    """
    return next((one for one in studio.starter.all() if studio.shelf.at(one.folder) == at), None)


def live(asked: Asked) -> Response:
    """The changing part of a run's page."""
    run = asked.studio.shelf.run(asked.get("at"))
    state, sentence, blocks = live_page.live_blocks(run, asked.studio.starter.of(run.path))
    return page("parts/live.html", state=state, sentence=sentence, blocks_of=blocks)


def stop(asked: Asked) -> Response:
    """Ask a run of this studio to stop."""
    at = asked.get("at")
    started = started_at(asked.studio, at)
    if started is None or not started.working:
        raise RunInputError(
            "expected a run that this studio started and that works; stop others in their terminal"
        )
    started.stop()
    return go(run_pages.link("/run", at))


def resume(asked: Asked) -> Response:
    """Continue an interrupted run."""
    run = asked.studio.shelf.run(asked.get("at"))
    if not run.resumable:
        raise RunInputError(
            f"{run.name}: expected a run that was interrupted, found one that works or is finished"
        )
    asked.studio.starter.resume(run.path)
    return go(run_pages.link("/run", run.at))


def ask_page(asked: Asked) -> Response:
    """What another policy would give: the form, and the answer to the last question about the run."""
    run = asked.studio.shelf.run(asked.get("at"))
    if not run.finished:
        raise RunInputError(f"{run.name}: expected a finished run; ask when it has ended")
    sites = [site.name for site in form.scenario_of(run.path).institutions]
    last = asked.studio.questions.of(run.path)
    chosen = {name: asked.get(name) for name in ("institution", "clause", "value")}
    shown = form.shown(last) if last else {}
    return page("ask.html", run=run, sites=sites, clauses=form.CLAUSES, chosen=chosen, last=last, **shown)


def ask_live(asked: Asked) -> Response:
    """The changing part of this page."""
    last = asked.studio.questions.of(asked.studio.shelf.run(asked.get("at")).path)
    if last is None:
        raise NotFoundError("expected a question about this run, found none; ask one")
    return page("parts/live.html", **form.shown(last))


def ask_start(asked: Asked) -> Response:
    """Begin to answer a question."""
    run = asked.studio.shelf.run(asked.get("at"))
    chosen = {name: asked.get(name).strip() for name in ("institution", "clause", "value")}
    asked.studio.questions.ask(run.path, form.settings_of(form.scenario_of(run.path), **chosen))
    return go(f"{run_pages.link('/ask', run.at)}&{urlencode(chosen)}")


def report(asked: Asked) -> Response:
    """The report of one or several runs or studies, as `casam report` writes it."""
    shelf = asked.studio.shelf
    if not asked.get("at"):
        raise NotFoundError("expected a run or a study, found none; choose one from the list of runs")
    found = read_all([shelf.find(at) for at in asked.lists.get("at", [])[:20]])
    try:
        from scenarios.report.page import page as report_page
    except ModuleNotFoundError as error:
        raise RunInputError(f"a report needs {error.name}; run: pip install 'casam[report]'") from error
    html = report_page(found, full=len(found.runs) == 1)
    return HTMLResponse(html, headers={"content-security-policy": REPORT_POLICY})


def compare(asked: Asked) -> Response:
    """Two runs beside each other, or the choice of them."""
    shelf = asked.studio.shelf
    runs = [run for run in shelf.runs() if run.finished]
    chosen = [shelf.run(at) for at in (asked.get("first"), asked.get("second")) if at]
    if len(chosen) == 2 and chosen[0].path == chosen[1].path:
        raise RunInputError("expected two different runs, found one twice; choose another")
    blocks = run_pages.compared(chosen[0], chosen[1]) if len(chosen) == 2 else []
    return page("compare.html", runs=runs, chosen=chosen, blocks_of=blocks)


def bank(asked: Asked) -> Response:
    """The banks, or one of them."""
    shelf = asked.studio.shelf
    if not asked.get("at"):
        return page("bank.html", run=None, runs=[run for run in shelf.runs() if run.bank], blocks_of=[])
    run = shelf.run(asked.get("at"))
    if run.bank is None:
        raise NotFoundError(f"{run.name}: expected a run with a bank, found none yet")
    return page("bank.html", run=run, runs=[], blocks_of=explained.bank_blocks(run.bank))


def audit(asked: Asked) -> Response:
    """The logs of a run, explained."""
    shelf = asked.studio.shelf
    if not asked.get("at"):
        return page("audit.html", run=None, runs=shelf.runs(), sections=[])
    run = shelf.run(asked.get("at"))
    return page("audit.html", run=run, runs=[], sections=explained.audit_sections(run))


def policy(asked: Asked) -> Response:
    """A policy in words."""
    scenarios = {name: [s.name for s in resolve_scenario(name).institutions] for name in library_names()}
    scenario = asked.get("scenario") if asked.get("scenario") in scenarios else "mixed-policy"
    institution, text, fault = asked.get("institution"), asked.get("policy"), ""
    if institution not in scenarios[scenario]:
        institution = scenarios[scenario][0]
    found: list[tuple[str, Any]] = []
    if asked.get("words"):
        try:
            found = explained.policy_page(scenario, institution, text)
        except CasamError as error:
            fault = str(error)
    return page(
        "policy.html",
        400 if fault else 200,
        scenarios=scenarios,
        scenario=scenario,
        institution=institution,
        policy=text,
        found=found,
        fault=fault,
    )


def gallery_page(asked: Asked) -> Response:
    """The pictures of an institution."""
    shelf, order = asked.studio.shelf, asked.get("order") or "gain"
    known = gallery.galleries(shelf, shelf.runs())
    chosen = next((one for one in known if one.at == asked.get("at")), known[0] if known else None)
    return page("gallery.html", known=known, chosen=chosen, order=order, orders=gallery.ORDERS)


def gallery_panel(asked: Asked) -> Response:
    """One panel of a picture."""
    text = asked.get("panel")
    number = int(text) if text.isascii() and text.isdigit() else -1
    return Response(gallery.panel(asked.studio.shelf, asked.get("at"), number), media_type="image/png")


def try_page(asked: Asked) -> Response:
    """Choose an image and a bank, or prompt the open image."""
    studio = asked.studio
    if not asked.get("open"):
        banks = [run for run in studio.shelf.runs() if run.bank]
        return page(
            "try/images.html", banks=banks, images=studio.shelf.images(), largest=prompting.LARGEST_UPLOAD
        )
    opened = studio.desk.opened(asked.get("open"))
    entries = studio.desk.entries(opened)
    return page("try/prompt.html", opened=opened, entries=entries, answers=list(opened.answers.values()))


def try_open(asked: Asked) -> Response:
    """Open an image of the given folders."""
    shelf = asked.studio.shelf
    opened = asked.studio.desk.open_file(shelf.find(asked.get("image")), shelf.run(asked.get("bank")))
    return go(f"/try?open={opened.key}")


def try_upload(asked: Asked) -> Response:
    """Open an image that the browser sends; the script follows the address in the answer."""
    shelf = asked.studio.shelf
    opened = asked.studio.desk.open_bytes(asked.get("name"), asked.body, shelf.run(asked.get("bank")))
    return PlainTextResponse(f"/try?open={opened.key}")


def try_segment(asked: Asked) -> Response:
    """Answer a prompt: the part with the results for a script, else the whole page."""
    desk = asked.studio.desk
    opened = desk.opened(asked.get("open"))
    boxes = prompting.numbers(asked.get("boxes"), 4)
    points, negatives = (prompting.numbers(asked.get(name), 2) for name in ("points", "negatives"))
    one_object, entries = bool(asked.get("one")), asked.lists.get("entry", [])
    answers = desk.answer(opened, boxes, points, entries, negatives, one_object)
    return (
        page("parts/answers.html", opened=opened, answers=answers)
        if asked.part
        else go(f"/try?open={opened.key}")
    )


def try_image(asked: Asked) -> Response:
    """The open image, or with an entry the image with its masks."""
    opened = asked.studio.desk.opened(asked.get("open"))
    answer = opened.answers.get(asked.get("entry"))
    content = prompting.shrunk(opened.image_HW3) if answer is None else prompting.drawn(opened, answer)
    return Response(content, media_type="image/png")


def try_mask(asked: Asked) -> Response:
    """The label map of an answer as a file to save: 0 background, 1..n the prompts."""
    from casam_use.telling import png_of

    opened = asked.studio.desk.opened(asked.get("open"))
    if (answer := opened.answers.get(asked.get("entry"))) is None:
        raise NotFoundError("expected an answer of the last prompt, found none; prompt first")
    name = "".join(c for c in Path(opened.name).stem if c.isalnum() or c in "-_")[:60] or "image"
    headers = {"content-disposition": f'attachment; filename="{name}-{answer.entry}-mask.png"'}
    return Response(png_of(answer.prediction.labels), media_type="image/png", headers=headers)
