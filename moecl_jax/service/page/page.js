// The reviewer's page: shows one text, takes one decision, shows the next.

import { draw, percent } from "./picture.js";
import { call, newRequest, Refused } from "./service.js";
import { show } from "./text.js";
import { currentLanguage, speak, word } from "./words.js";

const KEYS = "1234567890abcdefghijklnopqrtvwxyz"; // without S, U and M
const FORMATS = { jsonl: "jsonl", csv: "csv", tsv: "tsv" };
const get = (id) => document.getElementById(id);

let item = null; // the text on the screen
let tasks = {}; // the progress of each task, by its name
let named = false; // whether the service knows the reviewer by their key
let asked = 0; // how often the progress was asked for
const told = new Set(); // ids of the texts of which the model's opinion was on the screen
let busy = false; // whether something is being sent; keys do nothing meanwhile

function remembered(name, fallback) {
  return localStorage.getItem(`moecl-review-${name}`) ?? fallback;
}

function remember(name, value) {
  localStorage.setItem(`moecl-review-${name}`, value);
}

// ---- calls of the service

function reviewer() {
  return named ? null : remembered("name", "").trim() || null;
}

async function ask(path, { base = "v1/reviews/", ...options } = {}) {
  const key = sessionStorage.getItem("moecl-review-key");
  const waits = () => say(word(options.body === undefined ? "reading" : "retrying"), true);
  return (await call(base + path, { key, waits, ...options })).json();
}

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== "");
  return new URLSearchParams(given).toString();
}

function wantsOpinion() {
  return get("show-opinion").checked;
}

// Does one thing at a time, and says what went wrong.
async function alone(action) {
  if (busy) return;
  busy = true;
  document.querySelector("main").setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401 || error.status === 403) openSettings(word("needs_key"));
    else say(word("failed", { detail: error.message }), true);
  } finally {
    busy = false;
    document.querySelector("main").removeAttribute("aria-busy");
  }
}

async function fetchNext() {
  const given = { task: get("task").value, reviewer: reviewer(), opinion: wantsOpinion() };
  showItem((await ask(`next?${query(given)}`)).item);
  fetchProgress();
}

// Fetches the figures beside the text; nobody waits for them.
async function fetchProgress() {
  const aside = document.querySelector("aside");
  const mine = (asked += 1);
  aside.setAttribute("aria-busy", "true");
  try {
    const progress = await ask("progress");
    if (mine === asked) showProgress(progress);
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // the text's own request says why
  } finally {
    if (mine === asked) aside.removeAttribute("aria-busy");
  }
}

function showProgress(progress) {
  tasks = progress.tasks;
  named = progress.named;
  get("name").disabled = named;
  if (named) get("name").value = progress.reviewer;
  fillTasks();
  draw(get("picture"), get("legend"), tasks);
  const measures = [["kappa", progress.pairs], ["model_kappa", progress.model_pairs]];
  get("agreement").replaceChildren(...measures.filter(([, count]) => count > 0).map(([name, count]) => {
    const line = document.createElement("li");
    const kappa = progress[name] === null ? "–" : progress[name].toFixed(2);
    line.textContent = word(name, { kappa, count });
    return line;
  }));
}

// ---- what a reviewer does

function decide(label) {
  const decided = item;
  alone(async () => {
    const body = {
      request: newRequest(), item: decided.id, label, reviewer: reviewer(),
      opinion_shown: told.has(decided.id),
    };
    let outcome;
    try {
      outcome = outcomeOf(await ask("decisions", { body }));
    } catch (error) {
      if (!(error instanceof Refused && error.status === 409)) throw error;
      outcome = word("taken");
    }
    say(outcome);
    await fetchNext();
  });
}

function skip() {
  const skipped = item;
  alone(async () => {
    await ask("skips", { body: { request: newRequest(), item: skipped.id, reviewer: reviewer() } });
    say(word("skipped"));
    await fetchNext();
  });
}

function undo() {
  alone(async () => {
    const body = { request: newRequest(), reviewer: reviewer() };
    try {
      const answer = await ask(`undos?${query({ opinion: wantsOpinion() })}`, { body });
      say(word("undone"));
      showItem(answer.item);
    } catch (error) {
      if (!(error instanceof Refused && error.status === 404)) throw error;
      say(word("no_undo"));
    }
    fetchProgress();
  });
}

function outcomeOf({ label, model, settled }) {
  const chance = percent(model.probabilities[model.label]);
  const said = word(label === model.label ? "agrees" : "differs", { label: model.label, chance });
  const parts = [word("saved", { label }), said];
  if (settled === null) parts.push(word("second"));
  return parts.join(" ");
}

function say(message, problem = false) {
  get("outcome").textContent = message;
  get("outcome").className = problem ? "problem" : "";
}

// ---- what is shown

function showItem(shown) {
  item = shown;
  for (const id of ["card", "labels", "skip"]) get(id).hidden = item === null;
  get("empty").hidden = item !== null;
  if (item === null) {
    get("about").textContent = "";
    get("opinion").hidden = true;
    get("empty-why").textContent = word(get("task").value ? "nothing_of_task" : "nothing_more");
    return;
  }
  if (item.model) told.add(item.id);
  get("about").textContent = word("about", { task: item.task, id: item.id });
  show(get("text"), item.text);
  get("card").scrollTop = 0;
  const fields = Object.entries(item.context);
  get("context").hidden = fields.length === 0;
  get("context").replaceChildren(...fields.flatMap(([name, value]) => {
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    show(term, name);
    show(detail, typeof value === "string" ? value : JSON.stringify(value));
    detail.dir = "auto";
    return [term, detail];
  }));
  showLabels();
  if (!document.querySelector("dialog[open]")) get("card").focus({ preventScroll: true });
}

function showLabels() {
  const said = item.model;
  get("opinion").hidden = !said;
  if (said) {
    const chance = percent(said.probabilities[said.label]);
    get("opinion").textContent = word("opinion", { label: said.label, chance });
  }
  get("labels").replaceChildren(...item.labels.map((label, index) => {
    const button = document.createElement("button");
    button.type = "button";
    const key = KEYS[index];
    if (key) {
      const cap = document.createElement("kbd");
      cap.textContent = key.toUpperCase();
      button.append(cap);
      button.setAttribute("aria-keyshortcuts", key);
    }
    const name = document.createElement("span");
    show(name, label);
    button.append(name);
    if (said) {
      const chance = document.createElement("span");
      chance.className = "chance";
      chance.textContent = percent(said.probabilities[label]);
      button.append(chance);
    }
    button.addEventListener("click", () => decide(label));
    return button;
  }));
}

function option(value, text) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = text;
  return element;
}

function fillTasks() {
  const names = Object.keys(tasks);
  const fill = (element, options) => {
    const { value } = element;
    element.replaceChildren(...options);
    if (names.includes(value)) element.value = value;
  };
  const every = () => names.map((name) => option(name, name));
  fill(get("task"), [option("", word("all")), ...every()]);
  fill(get("export-task"), every());
}

// ---- dialogs

function openSettings(message = "") {
  get("settings-message").textContent = message;
  if (!get("settings").open) get("settings").showModal();
}

function openAdd() {
  get("add").showModal();
  alone(async () => {
    const known = await ask("tasks", { base: "v1/" });
    const options = known.tasks.map(({ name }) => option(name, name));
    if (known.finds_task) options.unshift(option("", word("found_by_text")));
    get("their-task").replaceChildren(...options);
  });
}

async function addTexts() {
  const file = get("file").files[0];
  const message = get("add-message");
  let [content, format] = [get("content").value, "lines"];
  if (file) {
    format = FORMATS[file.name.toLowerCase().split(".").pop()] ?? "lines";
    try {
      content = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    } catch {
      message.textContent = word("not_utf8");
      return;
    }
  }
  message.textContent = word("adding");
  get("add-now").disabled = true;
  try {
    const body = { content, format, task: get("their-task").value || null };
    const answer = await ask("texts", { body });
    message.textContent = word("added", answer);
    const { refused } = answer;
    if (refused.length) {
      message.textContent += word("refused_texts", { count: refused.length, ...refused[0] });
    }
    get("content").value = get("file").value = "";
    if (item === null) await alone(fetchNext);
    else fetchProgress();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    message.textContent = word("failed", { detail: error.message });
  } finally {
    get("add-now").disabled = false;
  }
}

async function download() {
  const format = document.querySelector("input[name=format]:checked").value;
  const task = get("export-task").value;
  const values = { format, task, unsettled: get("unsettled").checked };
  const key = sessionStorage.getItem("moecl-review-key");
  try {
    const answer = await call(`v1/reviews/export?${query(values)}`, { key });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `${task || "reviews"}-${format}.${format === "label-studio" ? "json" : "jsonl"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    get("export-message").textContent = word("downloaded", { name: link.download });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    get("export-message").textContent = word("failed", { detail: error.message });
  }
}

// ---- keys and buttons

function pressed(event) {
  const typing = event.target.closest("input:not([type=checkbox]), textarea, select, dialog");
  const modified = event.ctrlKey || event.metaKey || event.altKey || event.isComposing;
  if (typing || modified || event.repeat || !get("one-key").checked) return;
  const key = event.key.toLowerCase();
  const actions = { u: undo };
  if (item !== null) {
    Object.assign(actions, { s: skip });
    item.labels.forEach((label, index) => { actions[KEYS[index]] = () => decide(label); });
  }
  if (key === "m") get("show-opinion").click();
  else if (actions[key]) actions[key]();
  else return;
  event.preventDefault();
}

function changeLanguage(wanted) {
  speak(wanted);
  const other = currentLanguage() === "en" ? ["中文", "zh"] : ["English", "en"];
  [get("language").textContent, get("language").lang] = other;
  fillTasks();
  draw(get("picture"), get("legend"), tasks);
  if (item !== null) showItem(item);
}

function listen() {
  document.addEventListener("keydown", pressed);
  for (const [id, action] of Object.entries({
    skip, undo,
    "open-add": openAdd, "empty-add": openAdd,
    "open-export": () => get("export").showModal(), "open-settings": () => openSettings(),
    "add-now": addTexts, "export-now": download,
    language: () => {
      remember("language", currentLanguage() === "en" ? "zh" : "en");
      changeLanguage(remembered("language"));
      fetchProgress();
    },
  })) get(id).addEventListener("click", action);
  for (const id of ["add", "export"]) {
    get(id).addEventListener("close", () => { get(`${id}-message`).textContent = ""; });
  }
  get("task").addEventListener("change", () => alone(fetchNext));
  for (const id of ["show-opinion", "one-key"]) {
    get(id).addEventListener("change", () => remember(id, get(id).checked));
  }
  get("show-opinion").addEventListener("change", () => alone(fetchNext));
  get("settings").addEventListener("close", () => {
    if (!named) remember("name", get("name").value);
    const key = get("key").value.trim();
    get("key").value = "";
    if (/[^!-~]/.test(key)) { // it is no key: no header may hold it
      openSettings(word("needs_key"));
      return;
    }
    if (key) sessionStorage.setItem("moecl-review-key", key);
    alone(fetchNext);
  });
  addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });
}

get("show-opinion").checked = remembered("show-opinion", "false") === "true";
get("one-key").checked = remembered("one-key", "true") === "true";
get("name").value = remembered("name", "");
changeLanguage(remembered("language", navigator.language.slice(0, 2)));
listen();
alone(fetchNext);
