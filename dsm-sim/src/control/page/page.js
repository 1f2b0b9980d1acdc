// Refreshes the parts of the page, and sends changes to the control port.
"use strict";

const INTERVAL_MS = 2000;
const find = (selector) => document.querySelector(selector);
const search = find("#search");
const journal = find("#journal");

const showError = (text) => {
  find("#error").textContent = text;
  find("#error").hidden = !text;
};

const query = () => new URLSearchParams(new FormData(search)).toString();

const request = async (path, method = "GET", body = undefined) => {
  const reply = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await reply.text();
  if (!reply.ok) throw new Error(`${method} ${path}: ${text}`);
  return text;
};

// A part is not replaced while one of its inputs has the focus.
const inUse = (part) => part.contains(document.activeElement) && document.activeElement.matches("select, input");

const refreshOverview = async () => {
  const part = find("#overview");
  const html = await request(`/page/overview?${query()}`);
  if (!inUse(part)) {
    const open = [...part.querySelectorAll("details")].map((details) => details.open);
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((details, at) => { details.open = open[at] || false; });
  }
};

// Fetches the whole journal, since the entry of a hanging call changes later.
const refreshJournal = async () => {
  journal.innerHTML = await request(`/page/journal?${query()}`);
};

const refresh = async () => {
  try {
    await Promise.all([refreshOverview(), refreshJournal()]);
    showError("");
  } catch (error) {
    showError(`${error.message}. Is dsm-sim still running?`);
  }
};

const change = async (...args) => {
  try {
    await request(...args);
    document.activeElement?.blur();
    await refresh();
  } catch (error) {
    showError(error.message);
  }
};

const poll = async () => {
  if (!document.hidden) await refresh();
  setTimeout(poll, INTERVAL_MS);
};

search.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button?.name) {
    search.elements[button.name].value = button.value;
  } else {
    search.elements.luns_page.value = search.elements.targets_page.value = 0;
  }
  history.replaceState(null, "", `/?${query()}`);
  refresh();
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
  change("/faults", "POST", rule);
});

document.addEventListener("click", (event) => {
  const { removeFault, advance, expire } = event.target.dataset;
  if (removeFault) change(`/faults/${removeFault}`, "DELETE");
  if (advance) change("/clock", "POST", { advance_ms: Number(advance) });
  if (expire !== undefined) change("/sessions/expire", "POST", {});
});

document.addEventListener("change", (event) => {
  const { latency, setting } = event.target.dataset;
  if (latency !== undefined) change("/latency", "PATCH", { profile: event.target.value });
  if (setting) change("/settings", "PATCH", { [setting]: event.target.checked });
});

setTimeout(poll, INTERVAL_MS);
