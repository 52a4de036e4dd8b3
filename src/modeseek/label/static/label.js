"use strict";
// One pair at a time. A click is kept in the browser, under an id of its own, until the server has it on disk.
const find = (id) => document.getElementById(id);
const token = document.querySelector('meta[name="modeseek-token"]').content;
const PENDING = "modeseek-pending-";
let annotator = localStorage.getItem("modeseek-annotator") || "";
let pair = null;
let last = null; // the number of the label that undo takes back
let busy = false;
let looked = 0; // milliseconds that the pair was on a visible page
let since = 0;

history.replaceState(null, "", "/"); // the token stays out of the address bar and of bookmarks

const say = (text, warn = false) => {
  find("status").textContent = text;
  find("status").className = warn ? "warn" : "";
};

const ask = async (name, what) => {
  const reply = await fetch("/api/" + name, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Modeseek-Token": token },
    body: JSON.stringify({ annotator, ...what }),
  });
  const said = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(said.error || reply.statusText), { status: reply.status });
  return said;
};

const seconds = () => (looked + (document.hidden || !pair ? 0 : performance.now() - since)) / 1000;

const show = (state) => {
  pair = state.pair;
  last = state.last;
  looked = 0;
  since = performance.now();
  const { done, skipped, got, wanted } = state.progress;
  find("bar").max = Math.max(wanted, 1);
  find("bar").value = got;
  find("count").textContent = `you ${done}${skipped ? `, ${skipped} skipped` : ""}; all ${got} of ${wanted}`;
  find("name").textContent = annotator;
  find("enter").hidden = true;
  find("head").hidden = false;
  find("answers").hidden = false;
  find("work").hidden = !pair;
  find("note").value = "";
  if (!pair) {
    say("Nothing waits for you. Thank you. Undo (u) takes your last label back.");
    return;
  }
  // rendered and sanitised by the server; nothing in it can run, and the page's policy would not let it
  for (const part of ["prompt", "first", "second"]) {
    find(part).innerHTML = pair[part];
    find(part).scrollTop = 0;
  }
  find("same").hidden = !pair.same;
  window.scrollTo(0, 0);
};

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

const pending = () => Object.keys(localStorage).filter((key) => key.startsWith(PENDING));

// Sends the kept clicks until the server says that it has them. The same id counts once, however often it arrives.
const deliver = async () => {
  for (let tries = 0; pending().length; ) {
    const key = pending()[0];
    try {
      await ask("label", JSON.parse(localStorage.getItem(key)));
      localStorage.removeItem(key);
      tries = 0;
    } catch (error) {
      if (error.status === 400) localStorage.removeItem(key); // it will never be taken
      if (error.status) throw error;
      say("The server does not answer. Your label is kept here and is sent again.", true);
      await wait(Math.min(500 * 2 ** tries++, 5000));
    }
  }
};

const guarded = async (work) => {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await work();
  } catch (error) {
    say(error.status ? error.message : "The server does not answer. Is modeseek label still running?", true);
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
};

const choose = (choice) =>
  guarded(async () => {
    if (!pair) return;
    const took = seconds();
    const hurried = choice !== "skip" && took < pair.fast;
    const client = crypto.randomUUID();
    const note = find("note").value;
    const click = { annotator, pair: pair.id, order: pair.order, choice, seconds: took, note, client };
    localStorage.setItem(PENDING + client, JSON.stringify(click));
    await deliver();
    const state = await ask("next", {});
    show(state);
    if (state.pair) say(hurried ? `That took ${took.toFixed(1)} seconds, less than reading takes. Undo (u) if it was a slip.` : "", hurried);
  });

const undo = () =>
  guarded(async () => {
    // it names the label: sent again after an answer was lost, it takes back no other one
    const state = await ask("undo", { label: last });
    const said = state.undone === null ? "There is nothing to take back." : "Taken back: this is the pair again.";
    show(state);
    say(said);
  });

const begin = () =>
  guarded(async () => {
    await deliver();
    const state = await ask("next", {});
    say("");
    show(state);
  });

const enter = () => {
  find("enter").hidden = false;
  find("work").hidden = find("answers").hidden = find("head").hidden = true;
  pair = null;
  say("");
  find("annotator").value = annotator;
  find("annotator").focus();
};

find("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = find("annotator").value.trim();
  if (!annotator) return;
  localStorage.setItem("modeseek-annotator", annotator);
  begin();
});
find("change").addEventListener("click", enter);
find("undo").addEventListener("click", undo);
for (const button of document.querySelectorAll("[data-choice]"))
  button.addEventListener("click", () => choose(button.dataset.choice));

document.addEventListener("visibilitychange", () => {
  if (document.hidden) looked += performance.now() - since;
  else since = performance.now();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.tagName === "INPUT") {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "note")) event.target.blur();
    return;
  }
  const choices = { 1: "1", 2: "2", t: "tie", s: "skip" };
  const key = event.key.toLowerCase();
  if (find("answers").hidden) return;
  if (choices[key]) choose(choices[key]);
  else if (key === "u") undo();
  else if (key === "n") find("note").focus();
  else if (key === "g") find("guidelines").open = !find("guidelines").open;
  else return;
  event.preventDefault();
});

if (annotator) begin();
else enter();
