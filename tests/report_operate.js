// Presses the buttons of a report page; an expression for the DevTools protocol.
(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const until = async (test) => { for (let i = 0; i < 100 && !test(); i++) await wait(50); return test(); };
  const shown = () => [...document.querySelectorAll(".films figure:not([hidden])")];
  const all = shown().length;
  document.querySelector('button[value="lost"]').click();
  const failures = shown().map((e) => e.dataset.outcome);
  document.querySelector('button[value="finetune"]').click();
  const both = shown().map((e) => e.dataset.outcome + " " + e.dataset.policy);
  document.querySelector('button[value="lost"]').click();
  document.querySelector('button[value="finetune"]').click();
  const again = shown().length;
  const none = document.querySelector("[data-none]"), quiet = none.hidden;
  const cards = [...document.querySelectorAll('.films figure[data-outcome="won"]')];
  for (const card of cards) card.dataset.outcome = "lost";
  document.querySelector('button[value="won"]').click();
  const empty = quiet && !none.hidden && shown().length === 0;
  document.querySelector('button[value="won"]').click();
  for (const card of cards) card.dataset.outcome = "won";
  const playAll = document.querySelector("button[data-play]"), films = [...document.querySelectorAll("video")];
  playAll.click();
  const playing = await until(() => playAll.textContent === "Stop all" && films.every((v) => !v.paused));
  playAll.click();
  const stopped = await until(() => playAll.textContent === "Play all shown" && films.every((v) => v.paused));
  const video = document.querySelector("video"), button = video.nextElementSibling;
  button.click();
  const moved = await until(() => video.currentTime > 0.05);
  button.click();
  const paused = await until(() => video.paused);
  const copy = document.querySelector("button[data-copy]");
  copy.click();
  const copied = await until(() => copy.textContent === "Copied");
  return { all, failures, both, again, empty, playing, stopped, moved, paused, copied };
})()
