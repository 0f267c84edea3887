// Command explore goes through the configurations of package model, and prints what it
// finds. Its arguments are beginnings of their names; none is all that the promise is held
// to. With -bugs it explores those with a planted bug.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/idemq/idemq/e2e/model"
)

func main() {
	states := flag.Int("states", 0, "explore up to so many `states` of each configuration; 0 is all")
	bugs := flag.Bool("bugs", false, "explore the configurations with a planted bug")
	traces := flag.Bool("traces", false, "print the steps to windows as well")
	list := flag.Bool("list", false, "print the configurations only")
	flag.Parse()
	configs := model.Configs()
	if *bugs {
		configs = model.Bugs()
	}
	configs = slices.DeleteFunc(configs, func(c model.Config) bool {
		chosen := func(begin string) bool { return strings.HasPrefix(c.Name, begin) }
		return flag.NArg() > 0 && !slices.ContainsFunc(flag.Args(), chosen)
	})
	broken, total, steps, whole := 0, 0, 0, 0
	began := time.Now()
	for i := range configs {
		c := &configs[i]
		fmt.Printf("== %s: %s\n", c.Name, c.Says)
		if *list {
			continue
		}
		r := model.Explore(c, model.Limits{States: *states, AtBreach: *bugs}, progress())
		total += r.States
		steps += r.Steps
		note := "whole"
		if r.Complete {
			whole++
		} else {
			note = "in part"
		}
		fmt.Printf("   %d states, %d steps, %d deep, %s, %v\n", r.States, r.Steps, r.Depth, note, r.Took.Round(time.Millisecond))
		for _, f := range r.Windows {
			show("window", f, *traces)
		}
		for _, f := range r.Breaches {
			show("BREACH", f, true)
		}
		if len(r.Breaches) > 0 {
			broken++
		}
	}
	fmt.Printf("%d configurations, %d of them whole: %d states, %d steps, %v; %d break the promise\n",
		len(configs), whole, total, steps, time.Since(began).Round(time.Second), broken)
	if broken > 0 && !*bugs {
		os.Exit(1)
	}
}

// progress prints, now and then, how far an exploration has come.
func progress() func(states, depth int) {
	last := time.Now()
	return func(states, depth int) {
		if time.Since(last) < 10*time.Second {
			return
		}
		last = time.Now()
		fmt.Printf("   %d states, %d deep\n", states, depth)
	}
}

func show(kind string, f model.Finding, trace bool) {
	fmt.Printf("   %s %s (%d steps)\n", kind, f.What, f.Steps)
	if trace {
		fmt.Printf("      %s\n", strings.Join(f.Trace, "\n      "))
	}
}
