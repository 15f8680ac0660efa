// Clicks an element of a MiniWoB++ page, where one is given, and says what the page then shows; run in the page. Returns
// whether the episode is over, the texts that the instruction stresses, and for each line of the state its actions: their
// name, the element, and how: "click" by this script; "mouse" where an element asks for more than a click event; "type"
// for a text, which the caller puts before the name; "paste" for the note's text; otherwise a key to press.
if (arguments[0]) arguments[0].click();
const clean = text => text.replace(/\s+/g, ' ').trim().toLowerCase().replace(/:$/, '');
const seen = {};
const nth = kind => seen[kind] = (seen[kind] || 0) + 1;
const named = (kind, el) => {
  const place = nth(kind), around = el.closest('label, p, tr, .row, .field, .ui-entry, #form > div');
  return kind + ' ' + (around && clean(around.textContent) || place);
};
const mark = (line, word, on) => on ? line + ' ' + word : line;
const click = (name, el, possible = true, how = 'click') => possible ? [['click ' + name, el, how]] : [];
const toggle = (kind, el, on, back) => {
  const name = named(kind, el);
  return [mark(name, 'on', on), click(name, el, back || !on)];
};
const field = el => {
  const name = named('text', el), source = document.querySelector('#area textarea');
  const ways = [['in ' + name, el, 'type']];
  if (source && clean(source.value) !== clean(el.value)) ways.push(['paste note in ' + name, el, 'paste']);
  return [mark(name, 'is ' + clean(el.value), el.value), ways];
};
const option = el => {
  const name = 'option ' + clean(el.textContent), several = el.parentElement.multiple;
  return [mark(name, 'on', el.selected), click(name, el, several || !el.selected, 'mouse')];
};
const slider = el => {
  const name = 'slider ' + nth('slider'), handle = el.querySelector('.ui-slider-handle');
  const value = $(el).slider('value'), low = $(el).slider('option', 'min'), high = $(el).slider('option', 'max');
  const keys = [];
  if (value > low) keys.push(['left ' + name, handle, '\ue012']);
  if (value < high) keys.push(['right ' + name, handle, '\ue014']);
  return [name + ' is ' + value, keys];
};
const section = el => {
  const name = clean(el.textContent);
  return [mark(name, 'open', el.getAttribute('aria-expanded') === 'true'), click(name, el)];
};
const square = el => {
  const name = 'square ' + nth('square');
  return [mark(name + ' ' + el.dataset.color, 'on', el.className === 'selected'), click(name, el)];
};
const boxes = el => {
  const name = 'row ' + nth('row'), all = [...el.querySelectorAll('input')];
  const line = name + ' ' + all.map(box => box.checked ? 'x' : '-').join(' ');
  return [line, all.map((box, i) => ['click ' + name + ' box ' + (i + 1), box, 'click'])];
};
const parity = el => {
  const name = 'number ' + nth('number'), line = name + ' is ' + el.querySelector('.display-number').textContent;
  const chosen = el.querySelector('.selected');
  const ways = ['odd', 'even'].filter(way => !chosen || !chosen.classList.contains(way));
  return [mark(line, chosen && clean(chosen.textContent), chosen),
    ways.map(way => ['set ' + name + ' ' + way, el.querySelector('.' + way), 'click'])];
};
const dish = el => {
  const name = clean(el.dataset.item), count = +el.dataset.quantity;
  const ways = [['add ' + name, el.querySelector('.add'), 'click']];
  if (count) ways.push(['remove ' + name, el.querySelector('.remove'), 'click']);
  return [mark(name, count, count), ways];
};
const post = el => {
  const name = 'post ' + nth('post'), ways = ['reply', 'retweet', 'like', 'share'];
  const on = ways.filter(way => el.querySelector('.' + way).classList.contains('active'));
  const by = clean(el.querySelector('.username').textContent);
  return [[name, by, ...on].join(' '), ways.map(way => [way + ' ' + name, el.querySelector('.' + way), 'click'])];
};
const date = el => [mark('date', 'is ' + el.value, el.value), click('date', el, true, 'mouse')];
const submit = el => ['button ' + clean(el.textContent), click(clean(el.textContent), el)];
const note = el => ['note ' + clean(el.value || el.textContent), []];
const row = el => ['note ' + clean([...el.children].map(cell => cell.textContent).join(' ')), []];
const kinds = [
  ['#checkboxes p', boxes], ['#checkboxes input', null], ['input[type=checkbox]', el => toggle('box', el, el.checked, true)],
  ['input[type=radio]', el => toggle('radio', el, el.checked, false)], ['option', option], ['.ui-slider', slider],
  ['#datepicker', date], ['input', field], ['h3.ui-accordion-header', section],
  ['span[data-color]', square], ['.row:has(.display-number)', parity], ['.food-item', dish],
  ['.media', post], ['#numbers button', null], ['button, .final, .ui-submit', submit],
  ['#tab tr', row], ['textarea, #math-problem, #captcha, #area > p:first-child:not(:has(*))', note],
];
const lines = [];
for (const el of document.querySelectorAll('#area *')) {
  const kind = kinds.find(([selector]) => el.matches(selector));
  const box = el.tagName === 'OPTION' ? el.parentElement : el;
  if (kind && kind[1] && box.getClientRects().length) lines.push(kind[1](el));
}
const calendar = document.querySelector('.ui-datepicker');
if (calendar && calendar.getClientRects().length) {  // it lies over the rest; a mouse moves the focus, on which it opens
  lines.forEach(line => line[1] = []);
  const ways = ['prev', 'next'].map(way => [way, calendar.querySelector('.ui-datepicker-' + way)])
    .filter(([, el]) => !el.classList.contains('ui-state-disabled')).map(([way, el]) => ['click ' + way, el, 'mouse']);
  const days = [...calendar.querySelectorAll('td a')].map(el => ['pick ' + el.textContent, el, 'mouse']);
  lines.push([clean('month ' + calendar.querySelector('.ui-datepicker-title').textContent), [...ways, ...days]]);
}
const query = document.querySelector('#query');
const asked = [...[...query.querySelectorAll('.bold, b')].map(el => el.textContent),
  ...[...query.textContent.matchAll(/"([^"]+)"/g)].map(found => found[1])].map(clean);
return [WOB_DONE_GLOBAL, [...new Set(asked)], lines];
