"""What training costs, and what its short cuts do to the numbers: measurements, beside which no run depends on them."""
