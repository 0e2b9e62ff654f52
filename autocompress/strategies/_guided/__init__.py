"""Parts of the guided strategy: sensitivities, models of cost and accuracy, a solver, a measure of gain."""
