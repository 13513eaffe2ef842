"use strict";
// Draws a report's charts, sorts and searches its tables, and lets categories be chosen.

const PALETTE = ["#1f6feb", "#e8710a", "#1e8c46", "#d62828", "#8250df", "#8c564b", "#d45ca0",
                 "#57606a", "#a3a300", "#17a2b8"];
const CONFIG = {responsive: true, displaylogo: false,
                modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
const GROUPS = {r: "rare", c: "common", f: "frequent"};

// Plotly understands some tags in labels; names are to show as they are.
const plain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;")
                                  .replaceAll(">", "&gt;");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function draw(key, data, layout) {
  return Plotly.react(`chart-${key}`, data, layout, CONFIG);
}

function axis(title, more = {}) {
  return {title: {text: title, standoff: 8, font: {size: 13}}, gridcolor: "#e6e8eb", zerolinecolor: "#b6bcc4",
          linecolor: "#b6bcc4", automargin: true, ...more};
}

function layout(more) {
  return {font: {family: "system-ui, sans-serif", size: 13, color: "#24292f"},
          paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
          margin: {l: 60, r: 20, t: 20, b: 50}, hoverlabel: {namelength: -1},
          modebar: {bgcolor: "rgba(0,0,0,0)", color: "#b6bcc4", activecolor: "#1f6feb"},
          legend: {orientation: "h", y: -0.2, yanchor: "top", x: 0}, ...more};
}

function select(label, options, onchange) {
  const made = element("select", {onchange: event => onchange(Number(event.target.value))});
  options.forEach((text, value) => made.append(element("option", {value, textContent: text})));
  return element("label", {}, `${label} `, made);
}

// An input that proposes names; tells the number of the one that was chosen.
let lists = 0;
function picker(label, names, onpick) {
  const list = element("datalist", {id: `names-${lists++}`});
  names.forEach(name => list.append(element("option", {value: name})));
  const input = element("input", {type: "search", placeholder: `${names.length} categories`});
  input.setAttribute("list", list.id);
  input.addEventListener("change", () => {
    const found = names.indexOf(input.value);
    if (found >= 0) { onpick(found); input.value = ""; }
  });
  return element("label", {}, `${label} `, input, list);
}

const EXPLORERS = {
  pastes(bar, data) {
    let chosen = [...data.first], mode = 0;
    const chips = element("span", {className: "bar"});
    const totals = data.steps.map((_, w) => data.pasted.reduce((sum, row) => sum + row[w], 0));
    const modes = [
      ["share of all pastes", (i, w) => totals[w] ? data.pasted[i][w] / totals[w] : null, ".1%"],
      ["number of pastes", (i, w) => data.pasted[i][w], ",d"],
      ["share accepted", (i, w) =>
        data.pasted[i][w] ? data.accepted[i][w] / data.pasted[i][w] : null, ".0%"],
    ];
    const update = () => {
      const [title, value, tickformat] = modes[mode];
      draw("pastes", chosen.map((i, place) => ({
        type: "scatter", mode: "lines", name: plain(data.names[i]), x: data.steps,
        y: data.steps.map((_, w) => value(i, w)),
        line: {color: PALETTE[place % PALETTE.length], width: 2},
      })), layout({xaxis: axis("step"), showlegend: true,
                   yaxis: axis(title, {tickformat})}));
      chips.replaceChildren(...chosen.map(i => element("button", {
        className: "chip", textContent: data.names[i], title: "remove",
        onclick: () => { chosen = chosen.filter(other => other !== i); update(); },
      })));
    };
    bar.append(
      select("Show", modes.map(([title]) => title), value => { mode = value; update(); }),
      picker("Add a category", data.names, i => {
        if (!chosen.includes(i)) { chosen.push(i); update(); }
      }),
      element("button", {textContent: "Start again",
                         onclick: () => { chosen = [...data.first]; update(); }}),
      chips);
    update();
  },

  change(bar, data) {
    let other = 0, task = Object.keys(data.tasks).length - 1, most = 10;
    const words = Object.keys(data.tasks);
    const update = () => {
      const values = data.tasks[words[task]][other];
      const rows = values.map((value, i) => [value, i]).filter(([value]) => value !== null)
        .sort(([a], [b]) => Math.abs(b) - Math.abs(a)).slice(0, most).sort(([a], [b]) => a - b);
      const title = `${words[task]} AP: change against ${plain(data.others[other])}, points`;
      document.getElementById("chart-change").style.height = `${120 + 30 * rows.length}px`;
      draw("change", [{
        type: "bar", orientation: "h", x: rows.map(([value]) => value),
        y: rows.map(([, i]) => `${plain(data.names[i])} (${GROUPS[data.groups[i]] || "?"})`),
        text: rows.map(([value]) => (value > 0 ? "+" : "") + value.toFixed(1)),
        textposition: "outside", cliponaxis: false,
        marker: {color: rows.map(([value]) => value >= 0 ? "#1e8c46" : "#d62828")},
        hovertemplate: "%{y}: %{x:+.1f}<extra></extra>",
      }], layout({xaxis: axis(title), yaxis: axis("", {type: "category"}), bargap: 0.3,
                  margin: {l: 60, r: 50, t: 20, b: 50}}));
      Plotly.Plots.resize("chart-change");
    };
    bar.append(
      select("Against", data.others, value => { other = value; update(); }),
      select("AP of", words.map(word => word + (word === "box" ? "es" : "s")),
             value => { task = value; update(); }),
      select("Show", ["10 categories", "25 categories", "50 categories"],
             value => { most = [10, 25, 50][value]; update(); }));
    bar.querySelectorAll("select")[1].value = String(task);
    update();
  },

  belief(bar, data, figures) {
    const all = figures.belief;
    const shown = element("span", {textContent: "Shown: all categories"});
    const back = element("button", {textContent: "All categories", onclick: () => {
      shown.textContent = "Shown: all categories";
      draw("belief", all.data, all.layout);
    }});
    bar.append(picker("Show one category", data.names, i => {
      shown.textContent = `Shown: ${data.names[i]}`;
      draw("belief", [{type: "bar", x: data.x, y: data.counts[i], name: plain(data.names[i]),
                       marker: {color: "#3a6ea5"},
                       hovertemplate: "%{y:,} cut-outs about %{x:.2f}<extra></extra>"}],
           {...all.layout, showlegend: false});
    }), back, shown);
  },
};

function sortable(table, refresh) {
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column], number = cell.dataset.k;
    return number === undefined ? cell.textContent : number === "" ? null : Number(number);
  };
  [...table.tHead.rows[0].cells].forEach((heading, column, headings) => {
    const sort = () => {
      const first = heading.classList.contains("n") ? -1 : 1;
      const order = heading.dataset.order ? -Number(heading.dataset.order) : first;
      headings.forEach(other => delete other.dataset.order);
      heading.dataset.order = order;
      const rows = [...body.rows].map(row => [key(row, column), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
                                                       : order * (a > b ? 1 : a < b ? -1 : 0));
      body.append(...rows.map(([, row]) => row));
      refresh();
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}

function prepare(holder) {
  const table = holder.querySelector("table"), first = Number(table.dataset.first || 0);
  let isAll = !first, words = "";
  const refresh = () => {
    if (!first) return;
    let found = 0, shown = 0;
    for (const row of table.tBodies[0].rows) {
      const fits = row.textContent.toLowerCase().includes(words);
      found += fits;
      const isShown = fits && (isAll || shown < first);
      shown += isShown;
      row.classList.toggle("hidden", !isShown);
    }
    holder.querySelector(".count").textContent = `${shown} of ${found} shown`;
  };
  if (first) {
    holder.querySelector("input").addEventListener("input", event => {
      words = event.target.value.trim().toLowerCase();
      refresh();
    });
    const more = holder.querySelector(".more"), text = more.textContent;
    more.addEventListener("click", () => {
      isAll = !isAll;
      more.textContent = isAll ? `Show ${first}` : text;
      refresh();
    });
  }
  sortable(table, refresh);
  refresh();
}

function start() {
  const content = JSON.parse(document.getElementById("content").textContent);
  document.querySelectorAll(".table").forEach(prepare);
  document.querySelectorAll(".switch").forEach(holder => {
    const choose = holder.querySelector("select");
    const show = () => holder.querySelectorAll(".panel").forEach(
      panel => panel.classList.toggle("shown", panel.dataset.category === choose.value));
    choose.addEventListener("change", show);
    show();
  });
  for (const [key, figure] of Object.entries(content.charts)) draw(key, figure.data, figure.layout);
  document.querySelectorAll(".explorer").forEach(bar => {
    const name = bar.dataset.explorer;
    EXPLORERS[name](bar, content.data[name], content.charts);
  });
  // One part alone, for a picture of it: #only=precision
  const only = /^#only=(\w+)$/.exec(location.hash);
  if (only) {
    document.querySelectorAll("main > *").forEach(part => {
      part.hidden = part.id !== only[1];
      if (part.hidden) part.style.display = "none";
    });
    document.querySelector("nav").style.display = "none";
  }
  document.body.dataset.drawn = document.querySelectorAll(".js-plotly-plot").length;
}

window.addEventListener("error", event => { document.body.dataset.error = event.message; });
start();
