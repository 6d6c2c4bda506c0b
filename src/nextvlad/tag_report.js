"use strict";
// What the pointer (or an arrow key) shows of a second. Without it the page says all but single values.
const clock = (seconds) => {
  const s = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
};
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const signed = (x) => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(Math.abs(x) < 0.1 ? 3 : 2);

// A list of the videos on top, where there are several.
const sections = [...document.querySelectorAll("section")];
if (sections.length > 3) {
  const list = document.createElement("ol"), nav = document.createElement("nav");
  sections.forEach((part, i) => {
    part.id = `video-${i}`;
    const item = document.createElement("li"), link = document.createElement("a"), words = document.createElement("span");
    link.href = `#video-${i}`;
    link.textContent = part.querySelector("h2").textContent;
    words.textContent = [...part.querySelectorAll(".name")].slice(0, 2)
      .map((name) => `${name.firstChild.textContent} ${name.lastChild.textContent}`).join(", ")
      || (part.querySelector(".failed") ? "not tagged" : "");
    item.append(link, words);
    list.append(item);
  });
  nav.append(list);
  document.querySelector("header").append(nav);
}

for (const rows of document.querySelectorAll(".rows")) {
  const data = JSON.parse(rows.querySelector("script").textContent);
  const cursor = rows.querySelector(".cursor"), peek = rows.querySelector(".peek");
  const lane = rows.querySelector(".axis"), readings = [...rows.querySelectorAll("[data-tag]")];
  const pictures = [...rows.querySelectorAll(".thumbs img")];
  const times = pictures.map((image) => Number(image.dataset.second));
  let place = -1;

  const hide = () => {
    cursor.style.display = peek.style.display = "none";
    place = -1;
    readings.forEach((reading) => { reading.style.display = "none"; });
  };
  const show = (index) => {
    place = Math.max(0, Math.min(data.steps - 1, index));
    const box = rows.getBoundingClientRect(), axis = lane.getBoundingClientRect();
    const seconds = place * data.step, left = axis.left - box.left + axis.width * Math.min(1, (seconds + data.step / 2) / data.duration);
    cursor.style.display = peek.style.display = "block";
    cursor.style.left = `${left}px`;
    peek.replaceChildren();
    if (times.length) {
      let best = 0;
      times.forEach((t, i) => { if (Math.abs(t - seconds - data.step / 2) < Math.abs(times[best] - seconds - data.step / 2)) best = i; });
      const image = document.createElement("img");
      image.src = pictures[best].src;
      peek.append(image);
    }
    const title = document.createElement("b"), sound = data.level[place];
    title.textContent = data.step > 1.5 ? `${clock(seconds)} to ${clock(Math.min(data.duration, seconds + data.step))}` : clock(seconds);
    peek.append(title);
    if (sound !== undefined && sound !== null) peek.append(`sound ${sound <= -100 ? "silent" : `${sound.toFixed(0)} dBFS`}`);
    const width = peek.offsetWidth, height = peek.offsetHeight;
    peek.style.left = `${left + 14 + width > box.width ? left - width - 14 : left + 14}px`;
    peek.style.top = `${-height - 6 + 96}px`;
    readings.forEach((reading, i) => {
      const value = data.tags[i].values[place];
      if (value === undefined) return;
      reading.textContent = `${signed(value)}: ${sigmoid(data.tags[i].logit - value).toFixed(3)} without ${data.together > 1 ? "its strongest second" : "it"}`;
      reading.className = value > 0 ? "reading for" : "reading";
      reading.style.display = "block";
      const inLane = left - (axis.left - box.left);
      reading.style.left = `${inLane + 8 + reading.offsetWidth > axis.width ? inLane - 8 - reading.offsetWidth : inLane + 8}px`;
    });
  };
  const at = (event) => {
    const axis = lane.getBoundingClientRect();
    if (event.clientX < axis.left - 4 || event.clientX > axis.right + 4) return hide();
    return show(Math.floor((event.clientX - axis.left) / axis.width * data.duration / data.step));
  };
  rows.addEventListener("pointermove", at);
  rows.addEventListener("pointerdown", at);
  rows.addEventListener("pointerleave", hide);
  rows.addEventListener("blur", hide);
  rows.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") hide();
    if (by === undefined) return;
    event.preventDefault();
    show(place < 0 ? 0 : place + by);
  });
}
