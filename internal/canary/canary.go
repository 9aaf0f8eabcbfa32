//go:build !canary

package canary

// On says whether the bug is planted: never, in this build.
func On(Bug) bool { return false }
