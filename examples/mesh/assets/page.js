// Keeps the page up to date with the event stream. The server renders everything that is
// shown; without this script the page reloads every few seconds.
"use strict";

const body = document.body;
const live = document.getElementById("live");
const staleAfter = Number(body.dataset.staleAfter);
const reconnectAfter = 1000;

let version = body.dataset.version;
let stream; // the current one, if any
let openedAt; // when it was opened
let lastEvent = Date.now();
let etcdAge = 0; // how long etcd had not answered at the last pulse, in ms
let connected = false;
let wasConnected = false; // at any time

function connect() {
  openedAt = Date.now();
  stream = new EventSource("/events?after=" + encodeURIComponent(version));
  stream.addEventListener("update", (event) => {
    received();
    update(JSON.parse(event.data));
  });
  stream.addEventListener("pulse", (event) => {
    received();
    etcdAge = Number(event.data);
    showLive();
  });
  stream.addEventListener("error", reconnect);
}

function received() {
  lastEvent = Date.now();
  connected = wasConnected = true;
}

function reconnect() {
  stream.close();
  stream = undefined;
  connected = false;
  showLive();
  setTimeout(connect, reconnectAfter);
}

// showLive shows whether the page is current. The text changes only with the state, so
// that screen readers read it once.
function showLive() {
  const silent = Date.now() - lastEvent > staleAfter;
  let state = "live", text = "live";
  if (silent) {
    [state, text] = ["stale", "stale: no answer from the dashboard, reconnecting"];
  } else if (!connected) {
    state = text = wasConnected ? "reconnecting" : "connecting";
  } else if (etcdAge > staleAfter) {
    [state, text] = ["stale", "stale: the dashboard gets no answer from etcd"];
  }
  if (live.textContent !== text) {
    live.dataset.live = body.dataset.live = state;
    live.textContent = text;
  }
}

// A connection can die without an error, or be accepted and never answered. A silent one
// is replaced.
setInterval(() => {
  showLive();
  if (stream && Date.now() - Math.max(openedAt, lastEvent) > staleAfter) {
    reconnect();
  }
}, 500);

function update(event) {
  version = event.version;
  merge("headline", event.headline);
  merge("services", event.services);
  merge("graph", event.graph);
  const log = document.getElementById("log");
  const rows = parse("<table><tbody>" + event.log + "</tbody></table>").querySelectorAll("tr");
  if (event.whole) {
    log.replaceChildren(...rows);
  } else {
    log.prepend(...rows);
  }
  while (log.rows.length > 200) {
    log.deleteRow(-1);
  }
}

// merge replaces the children of an element that have changed, and preserves the focus.
function merge(id, html) {
  const parent = document.getElementById(id);
  const focused = document.activeElement && document.activeElement.id;
  const fresh = [...parse(html).children];
  fresh.forEach((child, i) => {
    const old = parent.children[i];
    if (!old) {
      parent.append(child);
    } else if (!old.isEqualNode(child)) {
      old.replaceWith(child);
    }
  });
  while (parent.children.length > fresh.length) {
    parent.lastElementChild.remove();
  }
  if (focused && document.activeElement.id !== focused) {
    document.getElementById(focused)?.focus({ preventScroll: true });
  }
}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// The buttons work as forms. With the stream there is no need to reload the page, and no
// need to report an unreachable server, because the page already shows that.
document.addEventListener("submit", (event) => {
  event.preventDefault();
  fetch(event.target.action, { method: "POST", redirect: "manual" }).catch(() => {});
});

connect();
