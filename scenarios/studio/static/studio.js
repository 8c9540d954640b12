// Small helps for pages that work without them: the live part, uploads, zoom, prompts on an image.
"use strict";
document.documentElement.classList.add("script");
const find = (selector) => document.querySelector(selector);

// A run's live part, once a second; when its state changes, the whole page is read again.
const live = find("[data-live]");
if (live && ["working", "stopping"].includes(live.dataset.state)) {
  const timer = setInterval(async () => {
    if (document.hidden) return;
    const answer = await fetch(live.dataset.live, { headers: { "X-Part": "1" } }).catch(() => null);
    if (!answer || !answer.ok) return clearInterval(timer);
    const fresh = document.createElement("div");
    fresh.innerHTML = await answer.text();
    if (fresh.querySelector("[data-now]").dataset.now !== live.dataset.state) return location.reload();
    const said = live.querySelector("[role=status]");
    const text = fresh.querySelector("[role=status]").textContent;
    if (said.textContent !== text) said.textContent = text;
    const open = live.querySelector("details")?.open;
    [...live.children].slice(1).forEach((part) => part.remove());
    live.append(...[...fresh.children].slice(1));
    if (open) live.querySelector("details").open = true;
  }, 1000);
}
if (find("[data-reload=yes]")) setTimeout(() => location.reload(), 1500);

// The gallery's zoom.
const zoom = find("#zoom");
for (const link of document.querySelectorAll("[data-zoom]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const [large, small] = [zoom.querySelector("img"), link.querySelector("img")];
    [large.src, large.alt] = [small.src, small.alt];
    zoom.showModal();
  });
}

// Opening an image.
const say = (fault) => { find("#fault").textContent = fault; find("#fault").hidden = false; find("#wait").hidden = true; };
find("form[action='/try/open']")?.addEventListener("submit", () => { find("#wait").hidden = false; });
find("[data-upload]")?.addEventListener("change", async (event) => {
  const input = event.target, file = input.files[0];
  if (!file) return;
  if (file.size > Number(input.dataset.most)) return say("The file is too large.");
  find("#wait").hidden = false;
  find("#fault").hidden = true;
  const query = new URLSearchParams({ name: file.name, bank: find("#bank").value });
  const answer = await fetch(`${input.dataset.upload}?${query}`, { method: "POST", body: file, headers: { "X-Part": "1" } });
  const text = await answer.text();
  if (answer.ok) location.assign(text);
  else say(new DOMParser().parseFromString(text, "text/html").body.textContent.trim());
});

// Prompts: drag for a box, click for a point, or the keyboard.
const stage = find("#stage"), form = find("#prompts");
if (stage) {
  const [boxes, points, negatives, marks, cross] = [find("#boxes"), find("#points"), find("#negatives"), find(".marks"), find(".cross")];
  const size = [Number(stage.dataset.width), Number(stage.dataset.height)];
  const rows = (field) => field.value.split("\n").map((line) => line.split(/[ ,]+/).filter(Boolean).map(Number)).filter((row) => row.length);
  const add = (field, row) => { field.value = (field.value.trim() ? field.value.trim() + "\n" : "") + row.join(", "); draw(); send(); };
  const percent = (value, axis) => `${(100 * value) / size[axis]}%`;
  const mark = (kind, row) => {
    const element = document.createElement("div");
    element.className = `mark ${kind}`;
    [element.style.left, element.style.top] = [percent(row[0], 0), percent(row[1], 1)];
    if (kind === "box") [element.style.width, element.style.height] = [percent(row[2] - row[0], 0), percent(row[3] - row[1], 1)];
    return element;
  };
  const draw = (extra) => marks.replaceChildren(
    ...rows(boxes).filter((row) => row.length === 4).map((row) => mark("box", row)),
    ...rows(points).filter((row) => row.length === 2).map((row) => mark("point", row)),
    ...rows(negatives).filter((row) => row.length === 2).map((row) => mark("negative", row)),
    ...(extra ? [mark("box", extra)] : []));
  const place = (event) => {
    const area = stage.querySelector("img").getBoundingClientRect();
    const inside = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value * most)));
    return [inside((event.clientX - area.left) / area.width, size[0]), inside((event.clientY - area.top) / area.height, size[1])];
  };
  const boxOf = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  let from = null, corner = null, at = size.map((length) => Math.floor(length / 2)), asked = 0;
  stage.addEventListener("pointerdown", (event) => { from = place(event); stage.setPointerCapture(event.pointerId); });
  stage.addEventListener("pointermove", (event) => { if (from) draw(boxOf(from, place(event))); });
  stage.addEventListener("pointerup", (event) => {
    if (!from) return;
    const box = boxOf(from, place(event)), small = Math.max(...size) / 100;
    from = null;
    if (box[2] - box[0] > small && box[3] - box[1] > small) add(boxes, box);
    else add(event.shiftKey ? negatives : points, box.slice(0, 2));
  });
  stage.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = Math.max(1, Math.round(Math.max(...size) / (event.shiftKey ? 12 : 100)));
    if (moves[event.key]) at = at.map((value, axis) => Math.max(0, Math.min(size[axis] - 1, value + step * moves[event.key][axis])));
    else if (event.key === "Enter") add(event.shiftKey ? negatives : points, at);
    else if (event.key === " " && !corner) corner = at;
    else if (event.key === " ") { add(boxes, boxOf(corner, at)); corner = null; }
    else if (event.key === "Escape") corner = null;
    else return;
    event.preventDefault();
    cross.hidden = false;
    [cross.style.left, cross.style.top] = [percent(at[0], 0), percent(at[1], 1)];
    draw(corner ? boxOf(corner, at) : null);
  });
  form.addEventListener("input", () => draw());
  form.addEventListener("reset", () => setTimeout(() => { draw(); find("#answers").replaceChildren(); }));
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  const send = async () => {
    const mine = ++asked, begun = performance.now();
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { "X-Part": "1" } });
    const text = await answer.text();
    if (mine !== asked) return; // a later prompt was sent
    find("#answers").innerHTML = text;
    await Promise.all([...document.querySelectorAll("#answers img")].map((image) => image.decode().catch(() => null)));
    const clock = find("#clock");
    if (clock) clock.textContent = `${((performance.now() - begun) / 1000).toFixed(2)} s from the click to the masks.`;
  };
}
