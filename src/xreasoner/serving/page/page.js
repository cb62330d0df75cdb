// The page: one conversation with the service it came from. No request to anywhere else; the service renders Markdown.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = "xreasoner.conversation";
const HISTORY = "xreasoner.history";
const state = { turns: [], pictures: [], server: {}, running: null, reading: Promise.resolve() };

// --- the service ---------------------------------------------------------------------------------------------------

async function connect() {
  try {
    const reply = await fetch("v1/models");
    if (reply.status === 401) return location.reload();
    if (reply.ok) {
      state.server = (await reply.json()).data[0];
      $("thinking").placeholder = state.server.thinking_budget;
      $("temperature").placeholder = state.server.temperature;
      return status(state.server.id, "ready");
    }
    status("the model is loading …", "");
  } catch {
    status("the service cannot be reached", "failed");
  }
  setTimeout(connect, 2000);
}

function status(text, kind) {
  $("model").textContent = text;
  $("model").className = kind;
}

const STATUS = { invalid_request_error: 400, rate_limit_error: 429 }; // of an error inside a stream, by its type

function inWords(code, said) {
  const words = {
    401: "Your session has ended. Reload the page to sign in again.",
    413: "The request is too large for the service. Send fewer or smaller images.",
    429: "The service is busy. Try again in a moment.",
  };
  if (code === 0) return "The service cannot be reached. Is it still running?";
  if (words[code]) return words[code];
  if (code >= 500) return said || "The service failed. See its log.";
  return said ? said[0].toUpperCase() + said.slice(1) + "." : "The service refused the request.";
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function content(turn) {
  const text = { type: "text", text: turn.question };
  return [...turn.pictures.map((url) => ({ type: "image_url", image_url: { url } })), text];
}

function body(turn) {
  const messages = [];
  if (turn.history) {
    for (const old of state.turns.slice(0, -1)) {
      if (!old.answer) continue;
      messages.push({ role: "user", content: content(old) }, { role: "assistant", content: old.answer });
    }
  }
  messages.push({ role: "user", content: content(turn) });
  const asked = { messages, prompt: "default", stream: true, stream_options: { include_usage: true }, seed: turn.seed };
  if (turn.options.length) asked.options = turn.options;
  if (turn.thinking !== null) asked.thinking_budget = turn.thinking;
  if (turn.temperature !== null) asked.temperature = turn.temperature;
  return JSON.stringify(asked);
}

function post(path, content, signal) {
  return fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: content, signal });
}

async function ask(turn, view) {
  const stopper = (state.running = new AbortController());
  busy(true);
  try {
    let reply = await post("v1/chat/completions", body(turn), stopper.signal);
    if (turn.history && state.turns.length > 1 && (reply.status === 400 || reply.status === 413)) {
      turn.history = false; // the conversation no longer fits, or holds what the service refuses
      const alone = await post("v1/chat/completions", body(turn), stopper.signal);
      turn.forgot = alone.ok;
      if (alone.ok) reply = alone;
    }
    if (!reply.ok) {
      const said = await reply.json().catch(() => ({}));
      throw { code: reply.status, said: said.error?.message };
    }
    for await (const event of events(reply)) heard(event);
    if (!turn.exit) throw { code: 0 };
  } catch (error) {
    if (error.name === "AbortError") turn.exit = "stopped";
    else turn.error = inWords(error.code ?? 0, error.said);
  }
  state.running = null;
  busy(false);
  show(turn, view);
  keep();
  render(turn, view);

  function heard(event) {
    if (event.error) throw { code: STATUS[event.error.type] ?? 500, said: event.error.message };
    const choice = event.choices[0];
    if (choice?.delta.reasoning) {
      turn.thought += choice.delta.reasoning;
      turn.tokens += choice.tokens ?? 1;
    }
    if (choice?.delta.content) turn.answer += choice.delta.content;
    if (choice?.exit) turn.exit = choice.exit;
    if (event.usage) turn.tokens = event.usage.completion_tokens_details.reasoning_tokens;
    if (event.option_probabilities) Object.assign(turn, { bars: event.option_probabilities, mass: event.mass });
    show(turn, view);
  }
}

// The answer as the service renders it; until then, and where it cannot, as it is written.
async function render(turn, view) {
  const text = turn.answer.trim();
  if (!text) return;
  try {
    const reply = await post("render", JSON.stringify({ text }));
    if (!reply.ok) return;
    const answer = view.querySelector(".answer");
    answer.innerHTML = (await reply.json()).html; // sanitized there; no script but this one may run here
    answer.classList.add("rendered");
    answer.classList.toggle("long", text.length > 120 || /\n/.test(text));
  } catch {
    // the service is away: the plain text stays
  }
}

// --- the conversation ----------------------------------------------------------------------------------------------

function add(turn) {
  $("welcome").hidden = true;
  const view = $("turn").content.cloneNode(true).firstElementChild;
  for (const url of turn.pictures) {
    const item = document.createElement("li");
    item.append(Object.assign(new Image(), { src: url, alt: "an image that you sent" }));
    view.querySelector(".shown").append(item);
  }
  if (turn.lost) {
    const item = document.createElement("li");
    item.textContent = turn.lost > 1 ? `${turn.lost} images, too large to keep` : "an image, too large to keep";
    view.querySelector(".shown").append(item);
  }
  const letters = turn.options.map((text, k) => `\n${String.fromCharCode(65 + k)}: ${text}`).join("");
  view.querySelector(".asked p").textContent = turn.question + letters;
  view.querySelector(".copy").addEventListener("click", (click) => copy(turn, click.target));
  $("log").append(view);
  show(turn, view);
  if (turn.exit) render(turn, view);
  return view;
}

function show(turn, view) {
  const at = (selector) => view.querySelector(selector);
  const low = innerHeight + scrollY >= document.body.scrollHeight - 80;
  const over = turn.exit || turn.error;
  at(".thought").hidden = !turn.thought && Boolean(over || turn.answer);
  at(".thought p").textContent = turn.thought.trim();
  at(".state").textContent = over || turn.answer ? "Thought" : "Thinking …";
  const thought = turn.budget ? Math.min(turn.tokens, turn.budget) : turn.tokens; // what closes it comes on top
  at(".count").textContent = turn.budget ? `${thought} of ${turn.budget} tokens` : `${thought} tokens`;
  at("progress").value = turn.budget ? Math.min(1, turn.tokens / turn.budget) : 0;
  if (!at(".answer.rendered")) at(".answer").textContent = turn.answer.trim();
  const notes = {
    forced: "Thinking was ended early: the thinking budget was used up, or the thought broke off.",
    truncated: "The token limit was reached before the answer was complete.",
    aborted: "The service ended this reply early.",
    refused: "A content filter ended this reply.",
    stopped: "Stopped.",
  };
  const forgot = turn.forgot ? "The conversation is too long for the model, so this question was asked without it. " : "";
  at(".note").textContent = turn.error || (forgot + (notes[turn.exit] || "")).trim();
  at(".note").classList.toggle("bad", Boolean(turn.error));
  if (turn.error) at(".note").setAttribute("role", "alert");
  at(".copy").hidden = !(over && turn.answer);
  if (turn.bars && !at(".bars tr")) bars(turn, at(".bars tbody"));
  if (low) scrollTo(0, document.body.scrollHeight);
}

function bars(turn, table) {
  const most = Math.max(...turn.bars.map((bar) => bar.probability));
  for (const { label, text, probability } of turn.bars) {
    const row = table.insertRow();
    row.className = probability === most ? "most" : "";
    row.insertCell().textContent = `${label}: ${text}`;
    const fill = document.createElement("i");
    fill.style.width = `${100 * probability}%`;
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.append(fill);
    row.insertCell().append(bar);
    row.insertCell().textContent = `${(100 * probability).toFixed(1)} %`;
  }
  if (turn.mass < 0.5) {
    const share = (100 * turn.mass).toFixed(1);
    table.insertRow().insertCell().textContent = `(the options hold ${share} % of the probability)`;
    table.lastElementChild.firstElementChild.colSpan = 3;
  }
}

async function copy(turn, button) {
  try {
    await navigator.clipboard.writeText(turn.answer.trim());
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copying is not allowed here";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function keep() {
  const turns = state.turns.map((turn) => ({ ...turn }));
  for (;;) {
    try {
      return localStorage.setItem(KEPT, JSON.stringify(turns));
    } catch {
      // full: images go first, then turns, the oldest before the others
      const pictured = turns.find((turn) => turn.pictures.length);
      if (pictured) Object.assign(pictured, { lost: pictured.pictures.length, pictures: [] });
      else if (!turns.shift()) return;
    }
  }
}

addEventListener("pagehide", keep); // the part of a reply that has arrived stays

function recall() {
  try {
    state.turns = JSON.parse(localStorage.getItem(KEPT)) ?? [];
  } catch {
    state.turns = [];
  }
  for (const turn of state.turns) {
    if (!turn.exit && !turn.error) turn.exit = "stopped"; // the page was left in the middle of it
    add(turn);
  }
  scrollTo(0, document.body.scrollHeight);
}

// --- the form ------------------------------------------------------------------------------------------------------

function busy(is) {
  $("stop").hidden = !is;
  $("send").hidden = is;
  if (is && document.activeElement === $("send")) $("stop").focus();
  if (!is) $("question").focus({ preventScroll: true });
}

function number(id) {
  return $(id).value === "" ? null : Number($(id).value);
}

async function submit() {
  await state.reading; // an image that is still being read belongs to this question, not to the next
  const question = $("question").value.trim();
  if (state.running || !question) return $("question").focus();
  const options = [...$("options").querySelectorAll("input")].map((input) => input.value.trim()).filter(Boolean);
  const turn = {
    question, options, pictures: state.pictures.splice(0), history: $("history").checked, seed: number("seed") ?? 0,
    thinking: number("thinking"), temperature: number("temperature"), thought: "", answer: "", tokens: 0, exit: "", error: "",
  };
  turn.budget = turn.thinking ?? state.server.thinking_budget;
  state.turns.push(turn);
  keep();
  $("question").value = $("refused").textContent = "";
  $("options").replaceChildren();
  drawPictures();
  const view = add(turn);
  scrollTo(0, document.body.scrollHeight);
  ask(turn, view);
}

function option(text = "") {
  const item = document.createElement("li");
  const input = Object.assign(document.createElement("input"), { ariaLabel: "Option", placeholder: "an option", value: text });
  const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×", ariaLabel: "Remove the option" });
  remove.addEventListener("click", () => item.remove());
  input.addEventListener("keydown", (key) => {
    if (key.key === "Enter") {
      key.preventDefault();
      if (input.value.trim()) option();
      else $("question").focus();
    }
  });
  item.append(input, remove);
  $("options").append(item);
  input.focus();
}

// An example is put into the form, to be read and changed before it is asked.
async function tryExample(example) {
  $("options").replaceChildren();
  for (const text of JSON.parse(example.dataset.options ?? "[]")) option(text);
  state.pictures = [];
  if ("image" in example.dataset) await take([await drawing()]);
  drawPictures();
  $("question").value = example.textContent;
  $("question").focus();
}

async function drawing() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 240, height: 160 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 240, 160);
  for (const [x, y, color] of [[60, 55, "#d33"], [125, 105, "#36c"], [185, 50, "#2a2"]]) {
    pen.fillStyle = color;
    pen.beginPath();
    pen.arc(x, y, 28, 0, 7);
    pen.fill();
  }
  const data = await new Promise((done) => canvas.toBlob(done));
  return new File([data], "circles.png", { type: "image/png" });
}

function take(files) {
  const found = [...files]; // an event's own list is emptied when the event is over
  return (state.reading = state.reading.then(() => read(found)));
}

async function read(files) {
  const others = [];
  for (const file of files) {
    if (!$("files").accept.split(",").includes(file.type)) {
      others.push(file.name);
      continue;
    }
    const reader = new FileReader();
    reader.readAsDataURL(file);
    await new Promise((done) => (reader.onloadend = done));
    if (reader.result) state.pictures.push(reader.result);
  }
  $("refused").textContent = others.length ? `Not a supported image (PNG, JPEG, WebP, GIF, BMP): ${others.join(", ")}` : "";
  drawPictures();
}

function drawPictures() {
  const items = state.pictures.map((url, k) => {
    const item = document.createElement("li");
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×", ariaLabel: `Remove image ${k + 1}` });
    remove.addEventListener("click", () => {
      state.pictures.splice(k, 1);
      drawPictures();
    });
    item.append(Object.assign(new Image(), { src: url, alt: `image ${k + 1}` }), remove);
    return item;
  });
  $("pictures").replaceChildren(...items);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("keydown", (key) => {
  if (key.key === "Enter" && !key.shiftKey && !key.isComposing) {
    key.preventDefault();
    submit();
  }
});
$("stop").addEventListener("click", () => state.running?.abort());
$("option").addEventListener("click", () => option());
for (const example of document.querySelectorAll(".example")) example.addEventListener("click", () => tryExample(example));
$("history").addEventListener("change", () => localStorage.setItem(HISTORY, $("history").checked ? "on" : "off"));
$("new").addEventListener("click", () => {
  state.running?.abort();
  state.turns = [];
  keep();
  $("log").replaceChildren($("welcome"));
  $("welcome").hidden = false;
  $("question").focus();
});
$("pick").addEventListener("keydown", (key) => {
  if (key.key === "Enter" || key.key === " ") {
    key.preventDefault();
    $("files").click();
  }
});
$("files").addEventListener("change", () => take($("files").files).then(() => ($("files").value = "")));
addEventListener("paste", (event) => take(event.clipboardData?.files ?? []));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
addEventListener("keydown", (key) => {
  if (key.key === "Escape") {
    if ($("settings").open) $("settings").open = false;
    else state.running?.abort();
  }
});
addEventListener("click", (event) => {
  if ($("settings").open && !$("settings").contains(event.target)) $("settings").open = false;
});
$("history").checked = localStorage.getItem(HISTORY) !== "off";
recall();
connect();
