// Keeps the page up to date with the event stream. The server renders everything that is
// shown; without this script the page reloads every few seconds.
"use strict";

import { follow, morph, parse } from "./live.js";

follow((update) => {
  morph("headline", update.headline);
  morph("services", update.services);
  morph("graph", update.graph);
  const log = document.getElementById("log");
  const rows = parse(update.log).querySelectorAll("tr");
  if (update.whole) {
    log.replaceChildren(...rows);
  } else {
    log.prepend(...rows);
  }
  while (log.rows.length > 200) {
    log.deleteRow(-1);
  }
});

// The buttons work as forms. With the stream there is no need to reload the page, and no
// need to report an unreachable server, because the page already shows that.
document.addEventListener("submit", (event) => {
  event.preventDefault();
  fetch(event.target.action, { method: "POST", redirect: "manual" }).catch(() => {});
});
