package main

import (
	"fmt"
	"github.com/idemq/idemq/e2e/model"
	"os"
	"strings"
)

func main() {
	for _, c := range append(append(model.Configs(), model.Bugs()...), model.Holes()...) {
		if len(os.Args) > 1 && !strings.HasPrefix(c.Name, os.Args[1]) {
			continue
		}
		r := model.Explore(&c, model.Limits{States: 150000}, nil)
		fmt.Printf("%-22s %8d states %9d steps depth %3d complete=%v %v\n", r.Name, r.States, r.Steps, r.Depth, r.Complete, r.Took)
		for _, f := range r.Breaches {
			fmt.Println("  BREACH", f.What, f.Steps)
			if len(os.Args) > 2 {
				for _, l := range f.Trace {
					fmt.Println("     ", l)
				}
			}
		}
		for _, f := range r.Windows {
			fmt.Println("  window", f.What, f.Steps)
		}
	}
}
