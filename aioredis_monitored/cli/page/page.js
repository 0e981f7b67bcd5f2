"use strict";

// Text enters the page as text alone: keys, and with them labels, may be anything.

const POLL_MILLISECONDS = 1000;

const traces = document.getElementById("traces");
const status = document.getElementById("status");

function showStatus(text, isError) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function rowOf(span, total) {
  const row = document.getElementById("row").content.cloneNode(true).firstElementChild;
  row.classList.toggle("error", span.is_error);
  const label = row.querySelector("th");
  label.textContent = span.label;
  label.style.paddingLeft = `${span.depth}rem`;
  const bar = row.querySelector(".bar");
  bar.style.marginLeft = `${(100 * span.start) / total}%`;
  bar.style.width = `${(100 * span.duration) / total}%`;
  row.querySelector(".duration").textContent = `${span.duration.toFixed(2)} ms`;
  row.querySelector(".remark").textContent = span.remark;
  return row;
}

function tableOf(waterfall) {
  const table = document.getElementById("trace").content.cloneNode(true).firstElementChild;
  const total = Math.max(...waterfall.map((span) => span.start + span.duration)) || 1;
  table.tBodies[0].append(...waterfall.map((span) => rowOf(span, total)));
  return table;
}

async function refresh() {
  const response = await fetch("traces");
  if (!response.ok) {
    throw new Error(`the shop replied ${response.status}`);
  }
  traces.replaceChildren(...(await response.json()).map(tableOf));
}

async function poll() {
  try {
    await refresh();
    if (status.classList.contains("error")) {
      showStatus("", false);
    }
  } catch (error) {
    showStatus(`No answer: ${error.message}`, true);
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

async function request(button) {
  const { method, path } = button.dataset;
  try {
    const response = await fetch(path, { method });
    showStatus(`${method} /${path}: ${response.status}`, !response.ok);
    await refresh();
  } catch (error) {
    showStatus(`${method} /${path}: ${error.message}`, true);
  }
}

for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => request(button));
}
poll();
