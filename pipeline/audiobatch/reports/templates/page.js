"use strict";
// Playing, finding, sorting and marking. The rows are in the document already; this only moves and hides them.
(() => {
  const $ = (id) => document.getElementById(id);
  const list = $("rows");
  const rows = Array.from(list.children);
  const job = "audiobatch:" + document.body.dataset.job;
  const keyOf = (row) => JSON.stringify([row.dataset.id, +row.dataset.turn, +row.dataset.version]);
  const say = (words) => { $("live").textContent = words; };
  const store = (() => {
    let kept = {}, works = true;
    const read = () => {
      try { kept = JSON.parse(localStorage.getItem(job) || "{}") || {}; } catch { works = false; }
      return kept;
    };
    try { localStorage.setItem(job + ":probe", "1"); localStorage.removeItem(job + ":probe"); } catch { works = false; }
    return {
      works, read,
      // Read again before each write: another tab, or another page of this job, may have marked meanwhile.
      write(key, entry) {
        const all = works ? read() : kept;
        if (entry) all[key] = entry; else delete all[key];
        kept = all;
        try { localStorage.setItem(job, JSON.stringify(all)); } catch { $("storage-note").hidden = false; }
      },
    };
  })();
  $("storage-note").hidden = store.works;

  // ---- light and dark -------------------------------------------------------------------------------------
  const themed = (name) => { if (name) document.documentElement.dataset.theme = name; };
  try { themed(localStorage.getItem("audiobatch:theme")); } catch { /* stays as the system has it */ }
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    themed(dark ? "light" : "dark");
    try { localStorage.setItem("audiobatch:theme", dark ? "light" : "dark"); } catch { /* for this visit */ }
  });
  if (matchMedia("(max-width: 680px)").matches) $("charts").open = false;

  // ---- marks: what the page was made with, and over it what this browser keeps -------------------------------
  const notes = new Map(rows.map((row) => [row, row.querySelector(".note")]));
  const noteOf = (row) => notes.get(row);
  const made = new Map(rows.map((row) => [row, { review: row.dataset.review, note: noteOf(row).dataset.was }]));
  const show = (row, mark) => {
    row.dataset.review = mark.review;
    for (const button of row.querySelectorAll(".mark")) {
      button.setAttribute("aria-pressed", String(button.dataset.mark === mark.review));
    }
    const note = noteOf(row);
    if (note.value !== mark.note) note.value = mark.note;
  };
  const current = (row) => ({ review: row.dataset.review, note: noteOf(row).value });
  const restore = () => {
    const kept = store.read();
    for (const row of rows) {
      const wanted = kept[keyOf(row)] || made.get(row), now = current(row);
      if (wanted.review !== now.review || wanted.note !== now.note) show(row, wanted);
    }
    counted();
  };
  const keep = (row) => {
    const was = made.get(row), now = current(row);
    store.write(keyOf(row), now.review === was.review && now.note === was.note ? null : now);
    counted();
  };
  const mark = (row, review) => {
    show(row, { review: row.dataset.review === review ? "" : review, note: noteOf(row).value });
    keep(row);
    say(row.dataset.review ? "marked " + row.dataset.review : "mark taken off");
  };

  // ---- review.csv: the cells are made safe by the rules of the manifest ---------------------------------------
  const FORMULA = /^[\s'"`´‘’“”„«»\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*?[=+\-@\t\r\n\u2212\ufe62\ufe63\ufe66\ufe6b＝＋－＠]/;
  const CONTROL = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)/gu;
  const escaped = (text) =>
    text.replace(CONTROL, (c) => "_x" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "_");
  const cell = (text) => '"' + (FORMULA.test(text) ? "'" + text : text).replaceAll('"', '""') + '"';
  const marked = () => {
    const all = new Map();
    for (const [key, entry] of Object.entries(store.read())) {
      try { all.set(key, [...JSON.parse(key), entry.review, entry.note]); } catch { /* not ours */ }
    }
    for (const row of rows) {
      const { review, note } = made.get(row);
      if ((review || note) && !all.has(keyOf(row))) all.set(keyOf(row), [...JSON.parse(keyOf(row)), review, note]);
    }
    return Array.from(all.values());
  };
  const counted = () => {
    const count = marked().length;
    $("export").disabled = !count;
    $("export").textContent = count ? `Save review.csv (${count})` : "Save review.csv";
  };
  $("export").addEventListener("click", () => {
    const lines = marked().map(([id, turn, version, review, note]) =>
      [cell(id), turn, version || "", cell(review), cell(escaped(note))].join(","));
    const text = "\ufeff" + ["item_id,turn,version,review,review_note", ...lines].join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = "review.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`review.csv with ${lines.length} rows`);
  });
  addEventListener("storage", (event) => { if (event.key === job) restore(); });

  // ---- finding and sorting ---------------------------------------------------------------------------------
  let haystack = null;
  const words = () => haystack ||= new Map(rows.map((row) => [row, (row.querySelector(".row-head").textContent + " "
    + row.querySelector(".row-words").textContent).toLocaleLowerCase()]));
  const tests = {
    status: (row, want) => want === "!" ? /failed|refused|unknown/.test(row.dataset.status) : row.dataset.status === want,
    check: (row, want) => want === "*" ? row.dataset.checks !== "" : row.dataset.checks.split(" ").includes(want),
    mark: (row, want) => want === "*" ? row.dataset.review !== "" : row.dataset.review === (want === "-" ? "" : want),
  };
  const filter = () => {
    const terms = $("find").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const wanted = Object.keys(tests).map((name) => [tests[name], $("f-" + name).value]).filter(([, want]) => want);
    let shown = 0;
    for (const row of rows) {
      const text = terms.length ? words().get(row) + " " + noteOf(row).value.toLocaleLowerCase() : "";
      const fits = wanted.every(([test, want]) => test(row, want)) && terms.every((term) => text.includes(term));
      if (row.hidden === fits) row.hidden = !fits;
      shown += fits;
    }
    const all = rows.length.toLocaleString("en");
    $("shown").textContent = shown === rows.length ? `${all} rows` : `${shown.toLocaleString("en")} of ${all} rows`;
    $("nothing").hidden = shown > 0 || !rows.length;
  };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const orders = {
    name: (a, b) => collator.compare(a.dataset.id, b.dataset.id) || a.dataset.turn - b.dataset.turn,
    cost: (a, b) => b.dataset.cost - a.dataset.cost,
    duration: (a, b) => b.dataset.duration - a.dataset.duration,
    short: (a, b) => (+a.dataset.duration || Infinity) - (+b.dataset.duration || Infinity) || 0,
    latency: (a, b) => b.dataset.latency - a.dataset.latency,
  };
  $("sort").addEventListener("change", () => {
    const order = orders[$("sort").value];
    list.replaceChildren(...(order ? rows.slice().sort(order) : rows));
  });
  let waiting = 0;
  $("find").addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(filter); });
  for (const name of Object.keys(tests)) $("f-" + name).addEventListener("change", filter);
  $("more-filters").addEventListener("click", () => {
    $("more-filters").setAttribute("aria-expanded", String($("filters").classList.toggle("open")));
  });
  $("clear").addEventListener("click", () => {
    $("find").value = "";
    for (const name of Object.keys(tests)) $("f-" + name).value = "";
    filter();
    $("find").focus();
  });
  for (const select of document.querySelectorAll(".go-page")) {
    select.addEventListener("change", () => { location.href = select.value; });
  }

  // ---- playing: one audio element for the whole page ----------------------------------------------------------
  const audio = $("audio");
  let clip = null, heard = null;
  const clock = (s) => Number.isFinite(s) ? Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0") : "–:––";
  const progress = () => {
    if (audio.error) return;
    const share = audio.duration > 0 ? audio.currentTime / audio.duration : 0;
    if (heard) heard.style.clipPath = `inset(0 ${100 - 100 * share}% 0 0)`;
    $("p-seek").value = Math.round(share * 1000);
    $("p-time").textContent = clock(audio.currentTime) + " / " + clock(audio.duration);
  };
  const load = (next) => {
    if (clip) { clip.classList.remove("playing"); heard?.remove(); }
    clip = next;
    heard = clip.querySelector(".wave svg").cloneNode(true);
    heard.classList.add("heard");
    clip.querySelector(".wave").append(heard);
    audio.src = clip.dataset.src;
    audio.playbackRate = +$("p-speed").value;
    $("p-name").textContent = clip.dataset.name;
    $("player").hidden = false;
    progress();
  };
  const toggle = (wanted) => {
    if (wanted && wanted !== clip) load(wanted);
    if (!clip) return;
    if (audio.paused) audio.play().catch(() => say("this recording cannot be played")); else audio.pause();
  };
  const follow = () => {
    for (const part of [clip, $("player")]) part?.classList.toggle("playing", !audio.paused);
    const step = () => { progress(); if (!audio.paused && !audio.error) requestAnimationFrame(step); };
    if (!audio.paused) step();
  };
  for (const event of ["play", "pause", "ended"]) audio.addEventListener(event, follow);
  for (const event of ["timeupdate", "loadedmetadata", "seeked"]) audio.addEventListener(event, progress);
  audio.addEventListener("error", () => {
    for (const part of [clip, $("player")]) part?.classList.remove("playing");
    if (clip) { $("p-time").textContent = "cannot be played: moved or deleted?"; say("this recording cannot be played"); }
  });
  const seekTo = (share) => { if (audio.duration > 0) audio.currentTime = share * audio.duration; };
  $("p-play").addEventListener("click", () => toggle());
  $("p-seek").addEventListener("input", () => seekTo($("p-seek").value / 1000));
  $("p-speed").addEventListener("change", () => { audio.playbackRate = +$("p-speed").value; });

  // ---- the mouse and the keyboard ----------------------------------------------------------------------------
  let here = null;
  const goTo = (row, focus = true) => {
    here?.classList.remove("current");
    here = row;
    row.classList.add("current");
    if (focus) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
  };
  const step = (way) => {
    let row = here ? (way > 0 ? here.nextElementSibling : here.previousElementSibling) : list.firstElementChild;
    while (row?.hidden) row = way > 0 ? row.nextElementSibling : row.previousElementSibling;
    if (row) goTo(row);
  };
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    goTo(row, false);
    const button = event.target.closest("button"), wave = event.target.closest(".wave");
    if (button?.matches(".play")) toggle(button.closest(".clip"));
    else if (button?.matches(".mark")) mark(row, button.dataset.mark);
    else if (button?.matches(".more")) {
      const open = button.previousElementSibling.classList.toggle("open");
      button.setAttribute("aria-expanded", String(open));
      button.textContent = open ? "Show less" : "Show all";
    } else if (wave) {
      const box = wave.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      const wanted = wave.closest(".clip");
      if (wanted === clip && audio.duration > 0) { seekTo(share); if (audio.paused) toggle(); return; }
      load(wanted);
      audio.addEventListener("loadedmetadata", () => seekTo(share), { once: true });
      toggle();
    }
  });
  list.addEventListener("focusin", (event) => {
    const row = event.target.closest(".row");
    if (row && row !== here) goTo(row, false);
  });
  list.addEventListener("input", (event) => { if (event.target.matches(".note")) keep(event.target.closest(".row")); });
  $("help-open").addEventListener("click", () => $("help").showModal());

  const keys = {
    j: () => step(1), k: () => step(-1),
    " ": () => toggle(here?.querySelector(".clip-reply") || here?.querySelector(".clip")),
    i: () => toggle(here?.querySelector(".clip-input")),
    o: () => here && mark(here, "ok"), r: () => here && mark(here, "redo"), x: () => here && mark(here, "reject"),
    n: () => here && noteOf(here).focus(),
    ArrowLeft: () => { audio.currentTime -= 2; }, ArrowRight: () => { audio.currentTime += 2; },
    "/": () => $("find").focus(), "?": () => $("help").showModal(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const field = event.target.closest?.("input, textarea, select");
    if (event.key === "Escape" && field) { if (here) here.focus(); else field.blur(); return; }
    if (field || (event.key === " " && event.target.closest?.("button, a, summary"))) return;
    const act = keys[event.key];
    if (!act || (event.key.startsWith("Arrow") && !clip)) return;
    event.preventDefault();
    act();
  });

  restore();
  filter();
})();
