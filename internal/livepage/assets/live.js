// What live pages share: follow reads the stream of events and shows whether the page is
// current; morph brings a part of the page up to date.
"use strict";

const body = document.body;
const live = document.getElementById("live");
const staleAfter = Number(body.dataset.staleAfter);
const reconnectAfter = 1000;

let version = body.dataset.version;
let update; // of the page
let stream; // the current one, if any
let waiting; // the timer until the next one, if any
let openedAt; // when the current one was opened
let lastEvent = Date.now();
let sourceAge = 0; // how long the source had not answered at the last pulse, in ms
let connected = false;
let wasConnected = false; // at any time

// follow calls update with the data of each update of the stream. The stream has the same
// query as the page.
export function follow(f) {
  update = f;
  connect();
}

// restart follows the stream of the query that the page has now.
export function restart() {
  version = "";
  close();
  connect();
}

function connect() {
  openedAt = Date.now();
  const query = new URLSearchParams(location.search);
  query.set("after", version);
  stream = new EventSource("/events?" + query);
  stream.addEventListener("update", (event) => {
    received();
    version = event.lastEventId;
    update(JSON.parse(event.data));
  });
  stream.addEventListener("pulse", (event) => {
    received();
    sourceAge = Number(event.data);
    showLive();
  });
  stream.addEventListener("error", reconnect);
}

function received() {
  lastEvent = Date.now();
  connected = wasConnected = true;
}

function close() {
  clearTimeout(waiting);
  stream?.close();
  stream = undefined;
}

function reconnect() {
  close();
  connected = false;
  showLive();
  waiting = setTimeout(connect, reconnectAfter);
}

// showLive shows whether the page is current. The text changes only with the state, so that
// screen readers read it once.
function showLive() {
  const silent = Date.now() - lastEvent > staleAfter;
  let state = "live", text = "live";
  if (silent) {
    [state, text] = ["stale", "stale: no answer from the server, reconnecting"];
  } else if (!connected) {
    state = text = wasConnected ? "reconnecting" : "connecting";
  } else if (sourceAge > staleAfter) {
    [state, text] = ["stale", "stale: the server gets no answer from etcd"];
  }
  if (live.textContent !== text) {
    live.dataset.live = body.dataset.live = state;
    live.textContent = text;
  }
}

// A connection can die without an error, or be accepted and never answered. A silent one is
// replaced.
setInterval(() => {
  if (document.hidden || !update) {
    return;
  }
  showLive();
  if (stream && Date.now() - Math.max(openedAt, lastEvent) > staleAfter) {
    reconnect();
  }
}, 500);

// Browsers open only a few connections to a server, so tabs that nobody sees have none.
document.addEventListener("visibilitychange", () => {
  if (!update) {
    return;
  }
  close();
  connected = false;
  if (!document.hidden) {
    lastEvent = Date.now();
    showLive();
    connect();
  }
});

// morph makes the children of an element those that the server has rendered. What has not
// changed stays as it is, and so do the focus and what is selected. Children with an id keep
// their identity.
export function morph(id, html) {
  const focused = document.activeElement;
  syncChildren(document.getElementById(id), parse(html));
  if (focused && focused !== document.activeElement && focused.isConnected) {
    focused.focus({ preventScroll: true });
  }
}

// parse returns what the server has rendered.
export function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

function syncChildren(old, fresh) {
  const wanted = new Set([...fresh.children].map((child) => child.id));
  const known = new Map();
  for (const child of [...old.children]) {
    if (child.id && !wanted.has(child.id)) {
      child.remove();
    } else if (child.id) {
      known.set(child.id, child);
    }
  }
  let at = old.firstChild;
  for (const want of [...fresh.childNodes]) {
    const have = want.id ? known.get(want.id) : at;
    if (!have || have.nodeName !== want.nodeName || (have.id ?? "") !== (want.id ?? "")) {
      old.insertBefore(want, at);
      continue;
    }
    if (have === at) {
      at = at.nextSibling;
    } else {
      old.insertBefore(have, at);
    }
    sync(have, want);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function sync(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) {
      old.data = fresh.data;
    }
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") {
      old.removeAttribute(name);
    }
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) {
      old.setAttribute(name, value);
    }
  }
  syncChildren(old, fresh);
}
