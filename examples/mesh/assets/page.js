// Keeps the page live by the stream of events. What is shown is rendered by the server;
// without this script the page loads itself again now and then.
"use strict";

const body = document.body;
const live = document.getElementById("live");
const staleAfter = Number(body.dataset.staleAfter);
const reconnectAfter = 1000;

let version = body.dataset.version;
let stream; // the present one, if any
let begun; // when it was
let lastWord = Date.now();
let etcdSilent = 0; // for how long, when the server last spoke
let connected = false;
let wasConnected = false; // ever

function connect() {
  begun = Date.now();
  stream = new EventSource("/events?after=" + encodeURIComponent(version));
  stream.addEventListener("update", (event) => {
    heard();
    update(JSON.parse(event.data));
  });
  stream.addEventListener("pulse", (event) => {
    heard();
    etcdSilent = Number(event.data);
    showLive();
  });
  stream.addEventListener("error", reconnect);
}

function heard() {
  lastWord = Date.now();
  connected = wasConnected = true;
}

function reconnect() {
  stream.close();
  stream = undefined;
  connected = false;
  showLive();
  setTimeout(connect, reconnectAfter);
}

// showLive says whether what is shown can be trusted. The text changes only with the
// state, so that it is read out once.
function showLive() {
  const silent = Date.now() - lastWord > staleAfter;
  let state = "live", text = "live";
  if (silent) {
    [state, text] = ["stale", "stale: no word from the dashboard, reconnecting"];
  } else if (!connected) {
    state = text = wasConnected ? "reconnecting" : "connecting";
  } else if (etcdSilent > staleAfter) {
    [state, text] = ["stale", "stale: the dashboard has no word from etcd"];
  }
  if (live.textContent !== text) {
    live.dataset.live = body.dataset.live = state;
    live.textContent = text;
  }
}

// A connection can die without an error, or be accepted and never answered. One that is
// silent is given up.
setInterval(() => {
  showLive();
  if (stream && Date.now() - Math.max(begun, lastWord) > staleAfter) {
    reconnect();
  }
}, 500);

function update(news) {
  version = news.version;
  merge("headline", news.headline);
  merge("services", news.services);
  merge("graph", news.graph);
  const log = document.getElementById("log");
  const rows = parse("<table><tbody>" + news.log + "</tbody></table>").querySelectorAll("tr");
  if (news.whole) {
    log.replaceChildren(...rows);
  } else {
    log.prepend(...rows);
  }
  while (log.rows.length > 200) {
    log.deleteRow(-1);
  }
}

// merge replaces the children of an element that are not what they were, and leaves the
// focus where it is.
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

// The buttons work as forms; with the stream there is no need to load the page again. That
// the server is not there is being shown already.
document.addEventListener("submit", (event) => {
  event.preventDefault();
  fetch(event.target.action, { method: "POST", redirect: "manual" }).catch(() => {});
});

connect();
