//go:build race

package model

// The race detector makes an exploration ten times as long.
const raced = true
