"""The page for trying a server in a browser: one HTML text, no other files, the same style as the reports."""

import json
from collections.abc import Sequence
from html import escape

from moe_adapt.evaluation.html import page

__all__ = ["try_page"]

_STYLE = """<style>
#ask { display: flex; gap: .5rem; flex-wrap: wrap; margin: 1rem 0; }
#text { flex: 1 1 14rem; } textarea, select, button { font: inherit; padding: .45rem .6rem; color: inherit;
  background: var(--band); border: 1px solid var(--line); border-radius: 4px; }
button { background: var(--accent); color: var(--page); border: 0; }
.turn { white-space: pre-wrap; margin: .5rem 0; padding: .4rem .8rem; border-left: 3px solid var(--line); }
.turn.user { border-color: var(--warm); } .turn.model { border-color: var(--accent); }
.bar { background: var(--accent); height: .5rem; }
</style>"""

_CHAT = """
const messages = [];
async function ask(text) {
  messages.push({role: "user", content: text}); turn("user", text);
  const box = turn("model", "");
  const answer = await fetch("v1/chat/completions", {method: "POST",
    headers: {"content-type": "application/json"},
    body: JSON.stringify({model: model.value, messages, stream: true, temperature: 0})});
  if (!answer.ok) { box.textContent = (await answer.json()).error.message; messages.pop(); return; }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    rest += value;
    const events = rest.split("\\n\\n"); rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const found = JSON.parse(data);
      if (found.error) box.textContent += " [" + found.error.message + "]";
      else if (found.choices.length) box.textContent += found.choices[0].delta.content || "";
    }
  }
  messages.push({role: "assistant", content: box.textContent});
}
"""

_CLASSIFY = """
async function ask(text) {
  turn("user", text);
  const box = turn("model", "");
  const answer = await fetch("classify", {method: "POST", headers: {"content-type": "application/json"},
    body: JSON.stringify({model: model.value, inputs: text, top: 5})});
  const found = await answer.json();
  if (!answer.ok) { box.textContent = found.error.message; return; }
  for (const one of found.results[0].top || [{class: found.results[0].prediction,
       probability: found.results[0].probability}]) {
    const line = document.createElement("div");
    line.textContent = one.class + "  " + one.probability.toFixed(4);
    const bar = document.createElement("div");
    bar.className = "bar"; bar.style.width = (100 * one.probability) + "%";
    box.append(line, bar);
  }
}
"""

_COMMON = """
const model = document.getElementById("model"), text = document.getElementById("text");
function turn(kind, said) {
  const box = document.createElement("div");
  box.className = "turn " + kind; box.textContent = said;
  document.getElementById("talk").append(box);
  return box;
}
document.getElementById("ask").addEventListener("submit", event => {
  event.preventDefault();
  const said = text.value.trim();
  if (said) { text.value = ""; ask(said).catch(error => turn("model", String(error))); }
});
text.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault();
    document.getElementById("ask").requestSubmit(); }
});
"""


def try_page(names: Sequence[str], classifier: bool) -> str:
    """Return the page.

    Args:
        names: The models (adapters) to choose from.
        classifier: Whether they classify; else they chat.
    """
    options = "".join(f"<option>{escape(name)}</option>" for name in names)
    form = (
        f'<form id="ask"><select id="model" aria-label="model">{options}</select>'
        '<textarea id="text" rows="1" aria-label="text" placeholder="a text ..."></textarea>'
        "<button>Ask</button></form>"
    )
    script = _COMMON + (_CLASSIFY if classifier else _CHAT)
    example = {"model": names[0], "inputs": "a text"}
    if not classifier:
        example = {"model": names[0], "messages": [{"role": "user", "content": "a text"}]}  # type: ignore[dict-item]
    address = "/classify" if classifier else "/v1/chat/completions"
    note = f"<p class=note>POST {address} {escape(json.dumps(example))}</p>"
    parts = [_STYLE, '<div id="talk" aria-live="polite"></div>', form, note, f"<script>{script}</script>"]
    return page("moe-adapt", parts)
