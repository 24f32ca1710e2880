package model

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// problemsOf are n Problems of one object, in no order.
func problemsOf(name string, n int) (all []Problem) {
	for i := range n {
		all = append(all, Problem{Object: ObjectRef{Kind: "Service", Name: name}, Field: fmt.Sprintf("f%03d", i), Reason: ReasonInvalidField})
	}
	rand.Shuffle(n, func(i, k int) { all[i], all[k] = all[k], all[i] })
	return all
}

func TestFirstProblems(t *testing.T) {
	for _, n := range []int{0, 1, MaxProblems - 1, MaxProblems, MaxProblems + 1, 1000} {
		got := FirstProblems(slices.Concat(problemsOf("b", n), problemsOf("a", 1), problemsOf("b", n)))
		b := slices.DeleteFunc(slices.Clone(got), func(p Problem) bool { return p.Object.Name == "a" })
		if want := min(n, MaxProblems+1); len(b) != want || len(got) != want+1 || got[0].Object.Name != "a" {
			t.Errorf("of %d and 1 Problems %d and %d are kept, want %d and 1", n, len(b), len(got)-len(b), want)
		}
		if more := n > MaxProblems && strings.HasPrefix(b[0].Message, "there are more than 32 "); more != (n > MaxProblems) {
			t.Errorf("of %d: that there are more is told: %v", n, more)
		}
		if n > 0 && !strings.HasPrefix(b[len(b)-1].Field, fmt.Sprintf("f%03d", min(n, MaxProblems)-1)) {
			t.Errorf("of %d the last is %v", n, b[len(b)-1])
		}
		if again := FirstProblems(slices.Clone(got)); !reflect.DeepEqual(again, got) {
			t.Errorf("of %d: the second time\n%v\nthe first time\n%v", n, again, got)
		}
	}
}

// TestFirstProblemsOfParts: who has kept the first and is told of more, says once that there are more.
func TestFirstProblemsOfParts(t *testing.T) {
	all := problemsOf("a", 100)
	whole, parts := FirstProblems(slices.Clone(all)), FirstProblems(slices.Clone(all[:60]))
	if parts = FirstProblems(append(parts, all[60:]...)); !reflect.DeepEqual(parts, whole) {
		t.Errorf("in parts\n%v\nat once\n%v", parts, whole)
	}
}
