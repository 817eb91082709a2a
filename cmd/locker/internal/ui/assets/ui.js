// Keeps the page up to date with the event stream, and filters while somebody types. The
// server renders everything that is shown; without this script the page reloads from time to
// time, and the filter is a form.
"use strict";

import { follow, morph, restart } from "./live.js";

follow((update) => morph("content", update.content));

const form = document.getElementById("filter");
const typing = 150; // ms after the last key
let timer;

function filter() {
  clearTimeout(timer);
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value) {
      query.set(name, value);
    }
  }
  history.replaceState(null, "", query.size ? "/?" + query : "/");
  const prefix = query.get("prefix");
  document.getElementById("json").href = prefix ? "/state.json?prefix=" + encodeURIComponent(prefix) : "/state.json";
  restart();
}

form?.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(filter, typing);
});

form?.addEventListener("submit", (event) => {
  event.preventDefault();
  filter();
});
