'use strict';
{
  const body = document.getElementById('entries');
  const summary = document.getElementById('summary');
  const heads = [...document.querySelectorAll('th')];
  const rows = [...body.rows];
  const isFile = (row) => !row.classList.contains('folder');

  // That of a long listing comes last.
  const tools = document.getElementById('tools');
  if (!tools.contains(summary)) tools.prepend(summary, ' ');

  // The order by name is the one there is or its reverse; else the rows tell.
  const reversed = heads[0].getAttribute('aria-sort') === 'descending';
  const facts = new Map(rows.map((row, index) => {
    const [, size, time] = row.cells;
    return [row, {
      name: Number(row.dataset.name ?? (reversed ? -index : index)),
      size: parseInt(size.title || size.textContent, 10) || 0,
      time: Date.parse(`${time.textContent.replace(' ', 'T')}Z`),
    }];
  }));

  // The same order as the server's: folders first, equal ones by name.
  const sort = (key, descending) => {
    const sign = descending ? -1 : 1;
    const compare = (a, b, key) => facts.get(a)[key] - facts.get(b)[key] || 0;
    rows.sort((a, b) => isFile(a) - isFile(b) || sign * compare(a, b, key) || compare(a, b, 'name'));
    const sorted = document.createDocumentFragment();
    for (const row of rows) sorted.append(row);
    body.append(sorted);
  };

  const mark = (head, descending) => {
    for (const other of heads) {
      const current = other === head;
      const next = current ? !descending : other.className !== 'name';
      other.ariaSort = current ? (descending ? 'descending' : 'ascending') : 'none';
      other.querySelector('a').search = `?sort=${other.className}&order=${next ? 'desc' : 'asc'}`;
    }
  };

  // The links work by themselves; here they are followed without leaving.
  for (const head of heads) {
    const link = head.querySelector('a');
    link.addEventListener('click', (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      const descending = new URLSearchParams(link.search).get('order') === 'desc';
      sort(head.className, descending);
      mark(head, descending);
    });
  }

  // Times of the reader's own zone instead of UTC.
  const two = (number) => String(number).padStart(2, '0');
  for (const row of rows) {
    const [, size, time] = row.cells;
    if (size.title) size.title += ' bytes';
    const at = new Date(facts.get(row).time);
    if (Number.isNaN(at.getTime())) continue;
    const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    time.firstChild.data = `${date} `;
    time.lastChild.textContent = `${two(at.getHours())}:${two(at.getMinutes())}`;
    time.title = at.toISOString().replace('.000', '');
  }
  document.querySelector('th.time span').remove();

  if (rows.length > 1) {
    const all = summary.textContent;
    const label = document.createElement('label');
    const input = document.createElement('input');
    input.type = 'search';
    input.autocomplete = 'off';
    label.append('Filter ', input);
    summary.after(label);
    const filter = () => {
      const wanted = input.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
        shown += row.hidden ? 0 : 1;
      }
      summary.textContent = wanted ? `${shown} of ${rows.length}` : all;
    };
    input.addEventListener('input', filter);
    // A browser that goes back fills the field in again.
    if (input.value) filter();
  }
}
