"use strict";
// Some browsers (Safari) refuse videos in data URIs: give those the same bytes as a blob.
for (const video of document.querySelectorAll(".films video")) {
  const retry = () => {
    const [head, body] = video.src.split(",");
    if (!head.startsWith("data:")) return;
    const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  };
  video.addEventListener("error", retry);
  if (video.error) retry();
}

// The browser's own controls cover half of so small a picture: one button per video instead.
for (const video of document.querySelectorAll(".films video")) {
  video.controls = false;
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Play or pause: ${video.getAttribute("aria-label")}`);
  button.innerHTML =
    '<svg class="go" viewBox="0 0 14 14" aria-hidden="true"><path d="M3 1l10 6-10 6z"/></svg>' +
    '<svg class="stop" viewBox="0 0 14 14" aria-hidden="true"><path d="M2 1h4v12H2zM8 1h4v12H8z"/></svg>';
  button.addEventListener("click", () => (video.paused ? play(video) : video.pause()));
  for (const event of ["play", "pause"]) {
    video.addEventListener(event, () => button.classList.toggle("playing", !video.paused));
  }
  video.after(button);
}

const play = (video) => video.play().catch(() => announce("This browser cannot play the video"));
const announce = (text) => { document.getElementById("said").textContent = text; };

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    let copied = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Pages opened from a file may not use the clipboard interface; only what is visible can be selected.
      source.closest("details").open = true;
      const range = document.createRange();
      range.selectNodeContents(source);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      copied = document.execCommand("copy");
    }
    const label = button.textContent;
    button.textContent = copied ? "Copied" : "Selected: press Ctrl+C";
    announce(button.textContent);
    setTimeout(() => { button.textContent = label; }, 1600);
  });
}

if (matchMedia("(max-width: 760px)").matches) {
  // On a phone one task fills several screens: the others open on a touch.
  for (const task of document.querySelectorAll(".task-films ~ .task-films")) task.open = false;
}

for (const gallery of document.querySelectorAll("[data-gallery]")) {
  const bar = gallery.querySelector(".bar-of-buttons");
  bar.hidden = false;
  const chosen = { outcome: "", policy: "" };
  const shown = () => [...gallery.querySelectorAll(".films figure:not([hidden]) video")];
  const filter = () => {
    for (const card of gallery.querySelectorAll(".films figure")) {
      card.hidden = Object.entries(chosen).some(([key, value]) => value && card.dataset[key] !== value);
      if (card.hidden) card.querySelector("video").pause();
    }
    for (const lane of gallery.querySelectorAll(".lane")) {
      lane.hidden = !lane.querySelector("figure:not([hidden])");
    }
    for (const task of gallery.querySelectorAll(".task-films")) {
      task.hidden = !task.querySelector("figure:not([hidden])");
    }
    gallery.querySelector("[data-none]").hidden = shown().length > 0;
    announce(`${shown().length} videos`);
  };
  for (const button of bar.querySelectorAll("button[data-filter]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.filter;
      chosen[key] = chosen[key] === button.value ? "" : button.value;
      for (const other of bar.querySelectorAll(`button[data-filter="${key}"]`)) {
        other.setAttribute("aria-pressed", String(other.value === chosen[key]));
      }
      filter();
    });
  }
  const all = bar.querySelector("button[data-play]");
  const playing = () => [...gallery.querySelectorAll(".films video")].filter((video) => !video.paused);
  const wording = all.textContent;
  for (const video of gallery.querySelectorAll(".films video")) {
    for (const event of ["play", "pause"]) {
      video.addEventListener(event, () => { all.textContent = playing().length ? "Stop all" : wording; });
    }
  }
  all.addEventListener("click", () => {
    const busy = playing();
    if (busy.length) return busy.forEach((video) => video.pause());
    for (const video of shown()) {
      video.currentTime = 0;
      play(video);
    }
  });
}
