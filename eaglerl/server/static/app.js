// The page: starts a session, follows its cycles, and goes back and forth through them.

import { Lane } from "./lane.js";
import { events, getJson, post, ServerError } from "./stream.js";

const byId = (id) => document.getElementById(id);
const stillMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

const state = {
  key: sessionStorage.getItem("eaglerl-key") ?? "",
  session: null, // id of the session while its events come
  abort: null,
  lanes: [],
  view: null, // number of the cycle shown; null follows the newest
  playing: false,
  timer: null,
  modes: [],
  unspoken: "",
};

// ---- what the server can do -------------------------------------------------------------------

async function loadInfo() {
  try {
    const info = await getJson("/live/info", state.key);
    state.modes = info.modes;
    byId("model").textContent = info.model;
    byId("max-tokens").max = info.max_tokens;
    fillModes(info);
    say("");
  } catch (error) {
    askForKey(error);
  }
}

function fillModes(info) {
  const [first, second] = [byId("mode"), byId("mode-second")];
  const names = info.modes.map((mode) => mode.name);
  first.replaceChildren(...names.map((name) => new Option(name, name)));
  second.replaceChildren(new Option("nothing", ""), ...names.map((name) => new Option(name, name)));
  [first.value, second.value = ""] = info.side_by_side;
  describeModes();
}

function describeModes() {
  // In the lanes' order; the same mode twice is described once.
  const wanted = new Set([byId("mode").value, byId("mode-second").value]);
  byId("mode-description").textContent = [...wanted]
    .map((name) => state.modes.find((mode) => mode.name === name))
    .filter(Boolean)
    .map((mode) => `${mode.name}: ${mode.description}`)
    .join("\n");
}

function askForKey(error) {
  if (error instanceof ServerError && error.status === 401) byId("key-field").hidden = false;
  say(error.message);
}

function say(message) {
  byId("message").textContent = message;
  byId("message").hidden = !message;
}

// ---- a session --------------------------------------------------------------------------------

async function start() {
  stop();
  say("");
  const modes = [byId("mode").value, byId("mode-second").value].filter(Boolean);
  const abort = new AbortController();
  Object.assign(state, { abort, lanes: [], view: null, unspoken: "" });
  setPlaying(true);
  const request = {
    prompt: byId("prompt").value,
    modes,
    max_tokens: Number(byId("max-tokens").value),
    temperature: Number(byId("temperature").value),
    paused: pace() > 0,
  };
  try {
    const response = await post("/live/sessions", request, state.key, abort.signal);
    for await (const event of events(response)) handle(event, modes);
  } catch (error) {
    if (abort.signal.aborted) return;
    askForKey(error);
  }
  // A newer session has taken over where this one was aborted.
  if (state.abort === abort) ended();
}

function handle({ name, content }, modes) {
  const lane = state.lanes[content.lane];
  if (name === "session") {
    state.session = content.id;
    state.lanes = modes.map((mode, place) => new Lane(mode, place, goTo));
    byId("lanes").replaceChildren(...state.lanes.map((each) => each.root));
    schedule();
  } else if (name === "begin" || name === "cycle") {
    const text = lane.add(content);
    if (content.lane === 0) speak(text);
  } else if (name === "finished") {
    lane.finish(content.reason, content.text);
    if (content.lane === 0) speak(content.text, true);
  } else if (name === "error") {
    say(content.error.message);
  }
  refresh();
}

function stop() {
  state.abort?.abort();
  ended();
}

function ended() {
  clearTimeout(state.timer);
  state.session = null;
  setPlaying(false);
  refresh();
}

async function control(action) {
  try {
    await post(`/live/sessions/${state.session}/control`, { action }, state.key);
  } catch (error) {
    // It may have ended in between.
    if (state.session) say(error.message);
  }
}

// ---- playing ----------------------------------------------------------------------------------

const pace = () => Number(byId("pace").value);
const newest = () => Math.max(0, ...state.lanes.map((lane) => lane.last));
const atNewest = () => state.view === null || state.view >= newest();

function setPlaying(playing) {
  state.playing = playing;
  clearTimeout(state.timer);
  if (playing) schedule();
}

// At a chosen pace the server does one cycle whenever it is told to.
function schedule() {
  clearTimeout(state.timer);
  if (!state.playing || !state.session || pace() === 0) return;
  state.timer = setTimeout(() => {
    control("step");
    schedule();
  }, pace());
}

function pauseOrRun() {
  if (!state.session) return;
  setPlaying(!state.playing);
  if (state.playing) {
    state.view = null;
    if (pace() === 0) control("run");
  } else {
    control("pause");
  }
  refresh();
}

function step() {
  if (!atNewest()) {
    goTo(state.view + 1);
  } else if (state.session) {
    state.view = null;
    setPlaying(false);
    control("step");
  }
  refresh();
}

function back() {
  goTo((state.view ?? newest()) - 1);
}

function goTo(cycle) {
  if (!state.lanes.length) return;
  if (state.session && state.playing) {
    setPlaying(false);
    control("pause");
  }
  state.view = Math.min(Math.max(cycle, 0), newest());
  refresh();
}

function follow() {
  state.view = null;
  refresh();
}

// ---- drawing ----------------------------------------------------------------------------------

let drawing = false;

// However many events come, the page is drawn once a frame.
function refresh() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function draw() {
  const last = newest();
  const shown = state.view ?? last;
  const animated = !stillMotion.matches && (pace() > 0 || !state.playing);
  for (const lane of state.lanes) lane.show(shown, animated);
  const position = byId("position");
  Object.assign(position, { max: last, value: shown, disabled: !last });
  position.setAttribute("aria-valuetext", `cycle ${shown} of ${last}`);
  byId("place").textContent = last ? `cycle ${shown} of ${last}` : "no cycles yet";
  byId("pause").textContent = state.session && !state.playing ? "Run" : "Pause";
  byId("pause").disabled = byId("stop").disabled = !state.session;
  byId("back").disabled = shown === 0;
  byId("step").disabled = !state.session && shown >= last;
  byId("newest").disabled = state.view === null || !last;
}

// Whole sentences, so that a screen reader is not interrupted by every token.
function speak(text, all = false) {
  state.unspoken += text;
  const end = all ? state.unspoken.length : state.unspoken.search(/[.!?\n](?=[^.!?\n]*$)/) + 1;
  if (!end) return;
  byId("spoken").textContent = state.unspoken.slice(0, end);
  state.unspoken = state.unspoken.slice(end);
}

// ---- input ------------------------------------------------------------------------------------

const KEYS = {
  " ": pauseOrRun,
  ArrowRight: step,
  ArrowLeft: back,
  Home: () => goTo(0),
  End: follow,
};

function onKey(event) {
  const action = KEYS[event.key];
  if (!action || event.ctrlKey || event.altKey || event.metaKey) return;
  // Where a key has a meaning of its own it keeps it.
  const element = event.target;
  if (element.closest("input, select, textarea") && element.id !== "position") return;
  if (event.key === " " && element.closest("button, a")) return;
  event.preventDefault();
  action();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
  localStorage.setItem("eaglerl-theme", theme);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("stop").addEventListener("click", stop);
byId("pause").addEventListener("click", pauseOrRun);
byId("step").addEventListener("click", step);
byId("back").addEventListener("click", back);
byId("newest").addEventListener("click", follow);
byId("position").addEventListener("input", (event) => goTo(Number(event.target.value)));
byId("mode").addEventListener("change", describeModes);
byId("mode-second").addEventListener("change", describeModes);
byId("pace").addEventListener("change", () => {
  if (!state.session || !state.playing) return;
  control(pace() ? "pause" : "run");
  schedule();
});
byId("key").addEventListener("change", (event) => {
  state.key = event.target.value;
  sessionStorage.setItem("eaglerl-key", state.key);
  loadInfo();
});
byId("theme").addEventListener("change", (event) => setTheme(event.target.value));
document.addEventListener("keydown", onKey);
setTheme(localStorage.getItem("eaglerl-theme") ?? "auto");
loadInfo();
