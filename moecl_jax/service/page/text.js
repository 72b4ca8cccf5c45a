// Shows texts of unknown origin: always as text, and with what is invisible in it made visible.

import { word } from "./words.js";

// Marks that turn the direction of text around, and characters of no width; those that join
// letters or emoji are left as they are.
const INVISIBLE = /([\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff])/u;

export function show(element, text) {
  element.replaceChildren();
  text.split(INVISIBLE).forEach((part, index) => {
    if (index % 2 === 0) {
      if (part) element.append(part);
      return;
    }
    const code = `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.title = word("hidden_mark", { code });
    mark.textContent = code;
    element.append(mark);
  });
}
