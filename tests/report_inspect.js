// Looks at an open report page; an expression for the DevTools protocol. Colours may come back as rgb() or,
// from color-mix(), as color(srgb ...). Commands may scroll sideways: broken lines would be hard to read.
(async () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const videos = [...document.querySelectorAll("video")];
  await Promise.all(videos.map((v) => v.readyState > 0 || new Promise((done) => {
    v.addEventListener("loadedmetadata", done); v.addEventListener("error", done);
  })));
  const posters = await Promise.all(videos.map(async (v) => {
    const picture = new Image(); picture.src = v.poster; await picture.decode(); return picture.naturalWidth;
  }));
  const rgba = (text) => {
    const n = text.match(/[\d.]+/g).map(Number);
    return text.startsWith("color(") ? [...n.slice(0, 3).map((x) => 255 * x), n[3] ?? 1] : [...n.slice(0, 3), n[3] ?? 1];
  };
  const light = (c) => { const [r, g, b] = c.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 0.99) return c; }
    return [255, 255, 255]; };
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest("script,.skip,.sr,button svg")) continue;
    const style = getComputedStyle(e), a = light(rgba(e.closest("svg") ? style.fill : style.color)), b = light(ground(e));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) pale.push([walker.currentNode.data.trim().slice(0, 30), +contrast.toFixed(2)]);
  }
  const wide = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("svg,.sr,.skip,.stack thead")
    && (e.getBoundingClientRect().right > innerWidth + 0.5 || (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible" && !e.matches("pre, .missing code"))))
    .map((e) => e.tagName + "." + e.className);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  const anchors = [...document.querySelectorAll('a[href^="#"]')].map((a) => a.hash.slice(1));
  const named = (e) => e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.textContent.trim();
  return {
    width: document.documentElement.scrollWidth, window: innerWidth, posters, pale, wide,
    videos: videos.map((v) => [v.readyState, v.duration, v.videoWidth]),
    doubled: ids.filter((id, i) => ids.indexOf(id) !== i), dangling: anchors.filter((id) => !ids.includes(id)),
    nameless: [...document.querySelectorAll("button,video,svg[role=img],section,[role=img],table")].filter((e) => !named(e)).length,
    unreachable: [...document.querySelectorAll("button,a,summary")].filter((e) => e.tabIndex < 0).length,
    levels: [...document.querySelectorAll("h1,h2,h3,h4")].map((h) => +h.tagName[1]),
    strokes: [...new Set([...document.querySelectorAll(".plot path")].map((p) => getComputedStyle(p).stroke))],
    background: getComputedStyle(document.body).backgroundColor,
  };
})()
