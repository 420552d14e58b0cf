"""Style sheet of the HTML report: for screens, light and dark, wide and narrow, and for paper."""

from __future__ import annotations

#: backgrounds of the two schemes; every color below has the contrast of at least 3 that graphics need on both
BACKGROUNDS = ("#ffffff", "#15181d")
#: colors of the stages and of the engines' curves
PALETTE = ("#7a8798", "#c98324", "#3f7fc4", "#4c9a4a", "#d05a41", "#9a6cc0", "#2a9a92", "#a5862f", "#d0608f", "#6f7f3f")
#: measured points, and missed limits
ACCENT, ALARM = "#3f7fc4", "#d05a41"
#: of curves, so that they also differ without color; the first is solid
DASHES = ("", "6 3", "2 3", "10 3 2 3", "4 6", "12 4")

_LIGHT = f"--back: {BACKGROUNDS[0]}; --ink: #1b1f24; --faint: #5b6470; --line: #d4d9df; --panel: #f5f7f9;"
_DARK = f"--back: {BACKGROUNDS[1]}; --ink: #e4e7eb; --faint: #a2abb6; --line: #39404a; --panel: #1d2128;"
_COLORS = "\n".join(f".c{i} {{ --c: {color}; }}" for i, color in enumerate(PALETTE))

STYLE = f"""
:root {{ color-scheme: light; {_LIGHT} --accent: {ACCENT}; --alarm: {ALARM}; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {_DARK} }} }}
{_COLORS}
* {{ box-sizing: border-box; }}
html {{ background: var(--back); color: var(--ink); -webkit-text-size-adjust: 100%; }}
body {{ font: 15px/1.55 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .3rem; line-height: 1.25; }}
h2 {{ font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.6rem 0 .4rem; }}
h4 {{ font-size: .95rem; margin: .8rem 0 .4rem; overflow-wrap: anywhere; }}
p, li {{ max-width: 46rem; overflow-wrap: anywhere; }}
ul {{ padding-left: 1.2rem; }} li {{ margin: .25rem 0; }}
nav ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }}
a {{ color: inherit; text-decoration-color: var(--accent); text-underline-offset: .2em; }}
:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
.note, figcaption, .axis {{ color: var(--faint); font-size: .87rem; }}
.box {{ border-left: 4px solid var(--accent); background: var(--panel); padding: .5rem .9rem; margin: .8rem 0; }}
.box p, .box ul {{ margin: .2rem 0; }}
.alarm {{ border-color: var(--alarm); }}

.scroll {{ overflow-x: auto; margin: .4rem 0 1rem; }}
.scroll {{ background: linear-gradient(to left, var(--back) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat; }}
table {{ border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .93rem; }}
.caption {{ font-weight: 600; font-size: .93rem; margin: 1.2rem 0 .2rem; max-width: none; }}
th, td {{ padding: .28rem .9rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); }}
th, td {{ white-space: nowrap; }}
th {{ font-weight: 600; }} tbody th {{ font-weight: 400; }} thead th {{ white-space: normal; vertical-align: bottom; }}
.left {{ text-align: left; }}
tr > :first-child {{ white-space: normal; overflow-wrap: anywhere; }}
tr > :first-child {{ min-width: 7rem; max-width: 18rem; }}
.scroll tr > :first-child {{ position: sticky; left: 0; background: var(--back); }}
table.words {{ margin-bottom: 1.4rem; width: 100%; table-layout: fixed; }}
table.words :is(td, th) {{ white-space: normal; vertical-align: top; overflow-wrap: anywhere; }}
table.words tr > :first-child {{ width: 32%; min-width: 0; }}
details {{ margin: .6rem 0; }} summary {{ cursor: pointer; }}

figure {{ margin: 0 0 1.2rem; }}
:not(svg) > svg {{ display: block; width: 100%; }} svg {{ overflow: visible; }}
svg text {{ font: 12px system-ui, sans-serif; fill: var(--faint); }}
svg .name {{ fill: var(--ink); font-weight: 600; }}
svg .grid {{ stroke: var(--line); }}
svg .fill {{ fill: var(--c, var(--accent)); }}
svg .curve {{ fill: none; stroke: var(--c, var(--accent)); stroke-width: 2; vector-effect: non-scaling-stroke; }}
svg .hollow {{ fill: var(--back); stroke: var(--faint); stroke-width: 1.5; }}
svg .measured {{ fill: var(--accent); stroke: var(--back); stroke-width: 1.5; }}
svg .pale {{ fill-opacity: .65; }}
svg .mark {{ stroke: var(--ink); stroke-width: 2; }}
.plot {{ padding: 1.6rem 1.2rem 3rem 3rem; }}
.heatmap {{ max-width: 44rem; padding: .2rem 0 .4rem 7.2rem; }}
pre {{ background: var(--panel); padding: .6rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.strip {{ margin: .9rem 0 0; }}
.strip > p {{ margin: 0 0 .2rem; max-width: none; }}
.ticks {{ padding-bottom: 1.4rem; }}
.legend {{ list-style: none; padding: 0; margin: .3rem 0; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; }}
.legend li {{ display: flex; align-items: center; gap: .4rem; margin: 0; }}
.legend svg {{ flex: none; width: 22px; height: 12px; }}
.panels {{ display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }}
.bars {{ display: grid; grid-template-columns: minmax(5rem, 9rem) 1fr 4.5rem; gap: .15rem .7rem; align-items: center; }}
.bars > :nth-child(3n) {{ text-align: right; font-variant-numeric: tabular-nums; }}
.pictures {{ display: grid; gap: .8rem; grid-template-columns: 1fr 1fr; }}
.pictures figure {{ margin: 0; min-width: 0; }}
.pictures img {{ width: 100%; height: auto; display: block; }}
.pictures b {{ display: block; }}
.pictures figcaption {{ overflow-wrap: anywhere; padding-top: .2rem; }}

@media screen and (max-width: 40rem) {{
  tr > :first-child {{ max-width: 8.5rem; }}
  th, td {{ padding-right: .6rem; }}
  td.left {{ white-space: normal; min-width: 8rem; }}
}}

@media print {{
  body {{ font-size: 10.5pt; max-width: none; padding: 0; }}
  nav {{ display: none; }}
  h2, h3, h4, summary, .caption {{ break-after: avoid; }}
  figure, tr, .strip, .pictures figure {{ break-inside: avoid; }}
  .scroll {{ overflow: visible; }} .scroll tr > :first-child {{ position: static; min-width: 0; }}
  table {{ font-size: 8.5pt; }} th, td {{ padding-right: .5rem; white-space: normal; }}
  details::details-content {{ content-visibility: visible; display: block; height: auto; }}
  a {{ text-decoration: none; }}
}}
"""
