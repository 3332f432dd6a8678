"""How the model and real cells look in figures: told apart by marker as well as by colour."""

MODEL = {"linestyle": "", "marker": "o", "color": "#0072B2", "markersize": 6}
REAL = {"linestyle": "", "marker": "D", "color": "#D55E00", "markersize": 6.5, "markerfacecolor": "white"}
TRAINING = {"linestyle": "", "marker": "^", "color": "#009E73", "markersize": 5.5, "markerfacecolor": "white"}
BRANCH, POINT = "#3b4a63", "#d1701f"  # of the tree, and of its branch points
IDEAL_LINE = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
ADDED = "#00795a"  # of what extensions added
