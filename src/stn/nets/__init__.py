"""Networks of the paper: localisation nets, classifiers, and the solver that gives them one parameter budget."""
