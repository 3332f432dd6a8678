"""How the model and real cells look in figures: told apart by marker as well as by colour."""

MODEL = {"linestyle": "", "marker": "o", "color": "#0072B2", "markersize": 6}
REAL = {"linestyle": "", "marker": "D", "color": "#D55E00", "markersize": 6.5, "markerfacecolor": "white"}
