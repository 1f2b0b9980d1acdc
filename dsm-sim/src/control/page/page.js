// Fetches the parts of the page again while somebody looks, and turns the control port's knobs.
"use strict";

const EVERY_MS = 2000;
const find = (selector) => document.querySelector(selector);
const look = find("#look");
const journal = find("#journal");

const trouble = (text) => {
  find("#trouble").textContent = text;
  find("#trouble").hidden = !text;
};

const wanted = () => new URLSearchParams(new FormData(look)).toString();

const ask = async (path, method = "GET", body = undefined) => {
  const reply = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await reply.text();
  if (!reply.ok) throw new Error(`${method} ${path}: ${text}`);
  return text;
};

// A part that somebody uses just now stays as it is.
const inUse = (part) => part.contains(document.activeElement) && document.activeElement.matches("select, input");

const seeOverview = async () => {
  const part = find("#overview");
  const html = await ask(`/page/overview?${wanted()}`);
  if (!inUse(part)) {
    const open = [...part.querySelectorAll("details")].map((details) => details.open);
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((details, at) => { details.open = open[at] || false; });
  }
};

// All of it again, since an entry that hangs changes later.
const seeJournal = async () => {
  journal.innerHTML = await ask(`/page/journal?${wanted()}`);
};

const see = async () => {
  try {
    await Promise.all([seeOverview(), seeJournal()]);
    trouble("");
  } catch (error) {
    trouble(`${error.message}. Is dsm-sim still running?`);
  }
};

const turn = async (...what) => {
  try {
    await ask(...what);
    document.activeElement?.blur();
    await see();
  } catch (error) {
    trouble(error.message);
  }
};

const watch = async () => {
  if (!document.hidden) await see();
  setTimeout(watch, EVERY_MS);
};

look.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button?.name) {
    look.elements[button.name].value = button.value;
  } else {
    look.elements.luns_page.value = look.elements.targets_page.value = 0;
  }
  history.replaceState(null, "", `/?${wanted()}`);
  see();
});

find("#fault").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const kind = form.get("kind");
  const number = Number(form.get("number"));
  const after = form.has("after");
  const fault = {
    refuse: { kind, code: number, after },
    http: { kind, status: number, after },
    delay: { kind, ms: number },
  }[kind] ?? { kind };
  const rule = {
    api: form.get("api"),
    method: form.get("method"),
    nth: Number(form.get("nth")),
    times: Number(form.get("times")),
    probability: Number(form.get("probability")),
    fault,
  };
  if (form.get("object")) rule.object = form.get("object");
  turn("/faults", "POST", rule);
});

document.addEventListener("click", (event) => {
  const { removeFault, advance, expire } = event.target.dataset;
  if (removeFault) turn(`/faults/${removeFault}`, "DELETE");
  if (advance) turn("/clock", "POST", { advance_ms: Number(advance) });
  if (expire !== undefined) turn("/sessions/expire", "POST", {});
});

document.addEventListener("change", (event) => {
  const { latency, setting } = event.target.dataset;
  if (latency !== undefined) turn("/latency", "PATCH", { profile: event.target.value });
  if (setting) turn("/settings", "PATCH", { [setting]: event.target.checked });
});

setTimeout(watch, EVERY_MS);
